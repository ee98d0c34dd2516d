"""log.jsonl: what a run reports while it trains."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path

import torch

from pem.training.trainer import Trainer, learning_rate

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

_log = logging.getLogger("pem")


class Log:
    """log.jsonl: the mean losses of an interval of steps, its speed, and how long all the rest will take."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        self.path, self.trainer = path, trainer
        self.first_step = self.last_step = trainer.step
        self.started = self.last_time = time.monotonic()
        self.sums: dict[str, float] = {}
        self.said_nothing_learned = False

    def add(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def write(self) -> str:
        """Ends an interval and writes its line. Returns a summary for the progress bar."""
        config, step, now = self.trainer.config, self.trainer.step, time.monotonic()
        if self.sums["mask"] == self.sums["dice"] == 0 and not self.said_nothing_learned:
            self.said_nothing_learned = True
            _log.warning(
                f"No segment was learned in steps {self.last_step + 1} to {step}: the losses of all masks were 0; look "
                "whether the labels fit the photos."
            )
        count = step - self.last_step
        memory = peak_memory_mib(self.trainer.device)
        entry = {
            "step": step,
            **{name: round(value / count, 4) for name, value in self.sums.items()},
            "lr": learning_rate(step - 1, config),
            "photos_per_s": round(count * config.batch_size / (now - self.last_time), 2),
            "eta_s": round((now - self.started) / (step - self.first_step) * (config.iterations - step)),
            **({} if memory is None else {"memory_mib": round(memory)}),
        }
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OSError(f"{self.path} cannot be written ({error.strerror}); make room for it.") from error
        self.last_time, self.last_step, self.sums = now, step, {}
        loss = sum(entry[name] for name in ("class", "mask", "dice"))
        in_memory = "" if memory is None else f", {memory:.0f} MiB"
        return f"loss {loss:.2f}, {entry['photos_per_s']} photos/s{in_memory}"


def forget_after(step: int, log: Path) -> None:
    """Removes the lines after a step: a killed run had logged steps after its checkpoint, which now come again."""
    if log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
        if kept != lines:
            log.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    """The step of a line; infinity for a damaged line, so that it is removed, too."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def peak_memory_mib(device: torch.device) -> float | None:
    """The peak memory of the process, or of the device if it is a GPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS gives bytes, others KiB
