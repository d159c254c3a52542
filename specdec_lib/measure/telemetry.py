"""Memory that a decoding call used. What a device cannot tell is None, never 0."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import torch

_PROC = Path("/proc/self")


def reset_peaks(device: torch.device) -> None:
    """Forget earlier peaks, so that the next reading belongs to what runs from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else the reserve of an earlier, larger cell would count as this one's
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        (_PROC / "clear_refs").write_text("5")  # Linux: reset the peak resident set size


def memory_columns(device: torch.device) -> dict[str, int | None]:
    """Bytes since the last `reset_peaks`: allocator peaks and device use on CUDA, resident set of the process."""
    cuda = device.type == "cuda"
    free, total = torch.cuda.mem_get_info(device) if cuda else (0, 0)
    return {
        "peak_memory_allocated_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "peak_memory_reserved_bytes": torch.cuda.max_memory_reserved(device) if cuda else None,
        "device_memory_used_bytes": total - free if cuda else None,
        "process_peak_rss_bytes": _peak_rss(),
    }


def _peak_rss() -> int:
    try:
        status = (_PROC / "status").read_text()
    except OSError:
        return psutil.Process().memory_info().rss
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
