"""The conditions of a measurement: no result is kept without them."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from pem.cores import cpuinfo
from pem.fast import native


def conditions(device: str | torch.device, precision: str = "float32") -> dict[str, Any]:
    """What a number depends on besides the model: device, threads, precision, versions, commit, command, date (UTC).

    On a CPU also whether float32 prototype attention is compiled.
    """
    device = torch.device(device)
    return {
        "device": device_name(device),
        **({"compiled_attention": native.library() is not None} if device.type == "cpu" else {}),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "precision": arithmetic(device, precision),
        "commit": commit(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "meta":
        return "meta (counted, nothing computed)"
    # platform.processor() knows only the architecture on Linux.
    name = cpuinfo("model name") or platform.processor() or platform.machine()
    # Virtual machines tell only the brand. But AVX-512 takes half the time of AVX2.
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def arithmetic(device: torch.device, precision: str) -> str:
    if precision not in ("float32", "float64"):
        return f"{precision} autocast"
    if device.type != "cuda" or precision == "float64":
        return precision
    # On recent GPUs float32 may mean TF32: 10 of the mantissa's 23 bits.
    try:
        tf32 = {"convolutions": torch.backends.cudnn.allow_tf32}
        tf32["matrix products"] = torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # newer switches have set what these cannot express
        return "float32, TF32 in: unknown"
    return f"float32, TF32 in: {', '.join(name for name, allowed in tf32.items() if allowed) or 'nothing'}"


def commit() -> str:
    """The commit that is checked out, with "-dirty" when files were changed since; "unknown" outside a repository.

    Changed results do not count: after the first of a run, all others would be "-dirty".
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True, encoding="utf-8"
        ).stdout.strip()

    try:
        changed = git("diff", "--name-only", "HEAD", "--", ".", ":(exclude)analysis/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
