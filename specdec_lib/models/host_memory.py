"""Memory of the host: huge pages for what every pass on a CPU reads, and none kept for what has ended.

A pass reads hundreds of megabytes at tens of GB/s: a page of 4 KiB lasts less than 0.1 us, and then the place of the
next is needed. Linux gives pages of 2 MiB to who asks for them, unless its administrator forbids it; where there are
none, the same memory comes in small pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Sequence

import torch
from torch import nn

HUGE = 2**21  # bytes of a page
LINE = 64  # bytes of a line of the caches, at which each tensor begins
HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)  # how to ask for them: Linux only


def zeros(
    shapes: Sequence[torch.Size | tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Tensors of these shapes, one behind the other in huge pages if that is a CPU and they fill one."""
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    places = [0]
    for size in sizes:
        places.append(places[-1] + -(-size // LINE) * LINE)
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
    """Move the parameters of a module on a CPU into huge pages, in place; tied ones, which are the same, stay tied."""
    weights = [weight for weight in module.parameters() if weight.device.type == "cpu"]
    for dtype in {weight.dtype for weight in weights}:
        of_type = [weight for weight in weights if weight.dtype == dtype]
        for weight, place in zip(of_type, zeros([w.shape for w in of_type], dtype, torch.device("cpu")), strict=True):
            weight.data = place.copy_(weight.data)


def give_back() -> None:
    """Let the system have what the C library keeps for later: after loading a model, tens of megabytes."""
    with contextlib.suppress(OSError, AttributeError):  # of another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
