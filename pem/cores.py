"""The processor: how many cores this process may use, and what it is. Programs also set how torch's threads wait.

GNU OpenMP, which torch's wheels bring, lets a waiting thread spin on its core for long. Where something else needs the
core, two threads then wait for each other and all takes several times as long. So each program sets GOMP_SPINCOUNT
before it imports torch, unless the user has. A library must not: its environment belongs to the program.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """The cores that the system lets this process run on, or fewer where its container has a quota of their time, or
    where the user has set OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, math.ceil(min(cores, quota(), int(wanted) if wanted.isdecimal() else cores)))


def cpuinfo(*names: str) -> str:
    """What Linux says of the first core under one of these names, such as "model name"; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = (value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() in names)
    return next(found, "")


def quota() -> float:
    """The cores' worth of time that a container of Linux has; infinite without a limit."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # version 2 and 1 of cgroups
        try:
            limit, period = " ".join((CGROUPS / name).read_text(encoding="ascii") for name in names).split()
            return float(limit) / float(period) if float(limit) > 0 else math.inf
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return math.inf
