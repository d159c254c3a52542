"""How many threads compute on a CPU: no more than the CPUs that affinity and quotas leave to this process.

Threads without a CPU of their own wait for one another at every barrier: four on two CPUs took 1.9 times as long. Under
a quota the system stops all of them for the rest of each period, which is worse.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

logger = logging.getLogger(__name__)


def fit_threads() -> None:
    """Let PyTorch compute with no more threads than this process may use CPUs, and say so where that changes them."""
    threads, cpus = torch.get_num_threads(), usable_cpus()
    if threads > cpus:
        logger.warning("%d threads would share %d CPUs: %d compute (affinity and quotas decide)", threads, cpus, cpus)
        torch.set_num_threads(cpus)


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use at once: those of its affinity, fewer if a control group has a quota; at least 1.

    A quota of 2.5 CPUs is 2, as threads wait for the slowest. `root` is where the system's files are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs by the quota of each control group (version 1 or 2) that this process is in, and of those above it.

    In a container the named group may lie outside of what is seen: then the topmost that is seen is the container's.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # no Linux
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ("", "unified") if not controllers else (controllers, "cpu")
        group = PurePosixPath(place.lstrip("/"))
        folders = [root / "sys/fs/cgroup" / mount / each for mount in mounts for each in (group, *group.parents)]
        yield from (quota for folder in dict.fromkeys(folders) if (quota := _quota(folder)))


def _quota(folder: Path) -> float | None:
    """CPUs that a control group may use; None if it has no quota."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = map(int, (folder / "cpu.max").read_text().split())  # or "max 100000"
        else:
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None  # -1 is none
