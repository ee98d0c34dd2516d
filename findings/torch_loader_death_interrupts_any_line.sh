#!/usr/bin/env bash
# A DataLoader's process that dies raises RuntimeError in whatever line the main thread runs, not where a batch is asked for.
#
# With num_workers, torch handles SIGCHLD in the main thread. When the system ends a worker, as it does when memory runs
# out, the handler raises RuntimeError at once. One would expect the error from next(), as other errors of a worker come.
# It comes from an unrelated line instead: the middle of an optimizer step, or of the code that saves a checkpoint. Code
# that looks for the error around next() misses it. Without the handler (signal.SIG_DFL, set after the iterator was made)
# next() reports the same within seconds, because torch also looks whether its workers live while it waits for a batch.
#
# Seen with torch 2.11.0 on Linux:
#   with torch's handler:     RuntimeError in the line that counts
#   with the default handler: counting ends undisturbed, and next() raises RuntimeError
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.2.6 2>/dev/null
cd "$folder"
cat > loader.py <<'PY'
"""Ends the only worker of a loader, and tells which line heard of it."""
import multiprocessing
import os
import signal
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return torch.tensor(index)


def count_for(seconds):
    """Work that has nothing to do with the loader."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


if __name__ == "__main__":
    batches = iter(DataLoader(Numbers(), batch_size=1, num_workers=1))
    next(batches)
    if sys.argv[1] == "default":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    (worker,) = multiprocessing.active_children()
    place = "counting"
    try:
        os.kill(worker.pid, signal.SIGKILL)
        count_for(3)
        place = "next()"
        for _ in batches:  # what had arrived already, and then the news
            pass
        place = "nowhere"
    except RuntimeError as error:
        assert "DataLoader worker" in str(error), error
    print(place, flush=True)
    os._exit(0)
PY
with_torchs=$("$folder/venv/bin/python" loader.py torch)
with_default=$("$folder/venv/bin/python" loader.py default)
echo "torch's handler: RuntimeError in $with_torchs; default handler: RuntimeError in $with_default"
[ "$with_torchs" = counting ] && [ "$with_default" = "next()" ]
