"""The device that models are loaded on."""

from __future__ import annotations

import torch


def checked_device(device: str) -> torch.device:
    """What `device` names.

    Raises:
        ValueError: no device, or one that PyTorch does not see.
    """
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}: give 'cpu', 'cuda' or 'cuda:<number>'") from None
    if place.type == "cuda" and (place.index or 0) >= (count := torch.cuda.device_count()):
        seen = f"{count} of them" if count else "no CUDA device"
        raise ValueError(f"device is {device} but PyTorch sees {seen}: use device='cpu' or install a CUDA build")
    return place
