"""Which runtime is the fastest on this machine for a model: measured once, and kept with its conditions."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pem.arrays import Arrays, as_arrays
from pem.config import PEMConfig
from pem.cores import cpuinfo, usable_cores
from pem.errors import first_line
from pem.preprocess import padded_size
from pem.run import run

ROUNDS = 7  # of which the first two only warm up
# Between class logits; rounding makes a thousandth of it. A bfloat16 file is computed in float32 by some runtimes.
DISAGREEMENT = {"float32": 1e-2, "bfloat16": 2.0}
_log = logging.getLogger("pem")


def fastest(model_file: Path, runtimes: list[str], load: Callable[[str], Any]) -> str:
    """One of ``runtimes``, by name. ``load(name)`` returns the model in it: a callable from pixels to a prediction.

    The first is trusted: another that cannot be loaded or disagrees with it is left out, with a warning. A choice that
    was made for this file, these versions and this processor is read from the cache.
    """
    if len(runtimes) == 1:
        return runtimes[0]
    if kept := kept_choice(model_file, runtimes):
        return kept["runtime"]
    times_ms = measure({name: partial(load, name) for name in runtimes})
    choice = min(times_ms, key=times_ms.__getitem__)
    record = {"runtime": choice, "median_ms": times_ms, **conditions(model_file, runtimes)}
    _log.info("The fastest runtime for %s is %s: %s ms.", model_file.name, choice, times_ms)
    file = kept_file(model_file, runtimes)
    with suppress(OSError):  # it is measured again next time
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
    return choice


def kept_choice(model_file: Path, runtimes: list[str]) -> dict[str, Any] | None:
    """What was measured and chosen for this file earlier on this machine, or None."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(kept_file(model_file, runtimes).read_text(encoding="utf-8"))
        return record if record["runtime"] in runtimes else None
    return None


def installed_version(package: str) -> str:
    """ "unknown" for what was not installed, as in a clone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def conditions(model_file: Path, runtimes: list[str]) -> dict[str, Any]:
    """What a choice depends on, and when it was made."""
    return {
        "model": model_file.name,
        "versions": {name: version(name) for name in runtimes},
        "processor": cpuinfo("model name"),
        "cores": usable_cores(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def kept_file(model_file: Path, runtimes: list[str]) -> Path:
    """Where a choice is kept: its name is a hash of what it depends on."""
    state = model_file.stat()
    about = conditions(model_file, runtimes) | {"date": "", "size": state.st_size, "changed": state.st_mtime_ns}
    about["instructions"] = cpuinfo("flags", "Features")
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pem" / f"runtime-{digest}.json"


def measure(loads: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of a pass of each, in ms, in turns on a photo-like sample of the model's usual size."""
    models = {}
    trusted: Arrays | None = None
    for name, load in loads.items():
        try:
            model = load()
            pixels = sample(model.config)
            found = as_arrays(run(model, pixels))
            limit = DISAGREEMENT.get(getattr(model, "precision", ""), DISAGREEMENT["float32"])
            if trusted is not None and not np.allclose(found.pred_logits, trusted.pred_logits, atol=limit):
                raise ValueError("its class logits are not those of the others")
        except Exception as error:  # each runtime has its own
            if trusted is None:
                raise
            _log.warning("The runtime %s is left out: %s.", name, first_line(error))
            continue
        trusted = trusted or found
        models[name] = model
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            as_arrays(run(model, pixels))
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: round(median(each[2:]), 2) for name, each in times.items()}


def sample(config: PEMConfig) -> np.ndarray:
    """Pixels [1, 3, H, W] of a 3:4 photo at the size at which the network sees it: coarse noise."""
    height, width = padded_size((config.short_side_px, config.short_side_px * 4 // 3))
    cells = np.random.default_rng(0).standard_normal((1, 3, height // 32, width // 32)).astype(np.float32)
    return cells.repeat(32, 2).repeat(32, 3)
