"""No number without its conditions: what a result was measured on, and how it is kept."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch


def conditions(device: str | torch.device) -> dict[str, Any]:
    """What a float32 number depends on besides the model: device, threads, versions, commit, command, date (UTC)."""
    device = torch.device(device)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "precision": precision(device),
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
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def precision(device: torch.device) -> str:
    if device.type != "cuda":
        return "float32"
    # On recent GPUs float32 may mean TF32, with a tenth of the mantissa lost to speed.
    tf32 = {"convolutions": torch.backends.cudnn.allow_tf32, "matrix products": torch.backends.cuda.matmul.allow_tf32}
    return f"float32, TF32 in: {', '.join(name for name, allowed in tf32.items() if allowed) or 'nothing'}"


def commit() -> str:
    """The commit that is checked out, with "-dirty" when files were changed since; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def save_json(result: dict[str, Any], path: str | Path) -> None:
    """Writes a result, in which records may stand. Raises ValueError when it has no "conditions"."""
    if "conditions" not in result:
        raise ValueError('The result has no "conditions"; add analysis.results.conditions(device) before saving it.')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=dataclasses.asdict) + "\n")
