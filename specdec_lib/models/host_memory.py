"""Host memory: huge pages for all that every pass on a CPU reads, and none kept after loading.

A pass reads hundreds of megabytes at tens of GB/s, so that a page of 4 KiB lasts less than 0.1 us. Linux gives pages of
2 MiB on request, unless its administrator forbids it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import nn

HUGE = 2**21  # bytes of a page
LINE = 64  # bytes of a cache line, at which each tensor begins
HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux only


def zeros(
    shapes: Sequence[torch.Size | tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Tensors of these shapes, in one block of huge pages if the device is a CPU and they fill a page."""
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    places = list(accumulate((-(-size // LINE) * LINE for size in sizes), initial=0))
    if device.type != "cpu" or HUGE_PAGES is None or places[-1] < HUGE or 0 in sizes:
        return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    block = mmap.mmap(-1, places[-1] + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        block.madvise(HUGE_PAGES)
    begin = -torch.frombuffer(block, dtype=torch.uint8).data_ptr() % HUGE
    return [
        torch.frombuffer(block, dtype=dtype, count=math.prod(shape), offset=begin + place).view(shape)
        for shape, place in zip(shapes, places, strict=False)
    ]


def move(module: nn.Module) -> None:
    """Move the parameters of a module on a CPU into huge pages, in place; tied parameters stay tied."""
    weights = [weight for weight in module.parameters() if weight.device.type == "cpu"]
    for dtype in {weight.dtype for weight in weights}:
        of_type = [weight for weight in weights if weight.dtype == dtype]
        for weight, place in zip(of_type, zeros([w.shape for w in of_type], dtype, torch.device("cpu")), strict=True):
            weight.data = place.copy_(weight.data)


def give_back() -> None:
    """Return to the system the memory that the C library keeps: tens of megabytes after loading a model."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
