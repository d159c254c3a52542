"""A target spread over several devices of one host: every process holds a slice of each matrix, and all decode alike.

transformers cuts the weights by its own plan and adds the collectives (`DistributedConfig`). The cache holds the
key/value heads of this process alone. Each process runs the same draft, draws the same random numbers and gathers the
same logits, so that all decide alike.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from specdec_lib.models.shape import attention_geometry


def loading(tensor_parallel: int, device: str) -> dict[str, Any]:
    """The options of `from_pretrained` that put a model, or this process's part of it, on its device."""
    if tensor_parallel == 1:
        return {"device_map": device}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=tensor_parallel)}


def devices_of(model: Any) -> int:
    """The number of devices that a model is spread over."""
    return getattr(model, "_tp_size", None) or 1


def check_processes(tensor_parallel: int, device: str) -> None:
    """Refuse another number of processes than `tensor_parallel`, or too few devices, by a ValueError."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != tensor_parallel:
        raise ValueError(
            f"tensor_parallel is {tensor_parallel}, which needs that many processes, and there are {processes}: start "
            f"them with torchrun --nproc-per-node {tensor_parallel}"
        )
    check_devices(tensor_parallel, device)


def check_devices(tensor_parallel: int, device: str) -> None:
    """Refuse more devices than this machine has, by a ValueError."""
    if device == "cuda" and (here := torch.cuda.device_count()) < tensor_parallel:
        raise ValueError(f"tensor_parallel is {tensor_parallel}, but PyTorch sees {here} CUDA devices: lower it")


def check_heads(config: Any, tensor_parallel: int, where: str) -> None:
    """Refuse a model whose heads cannot be divided evenly, by a ValueError."""
    heads, shared, _ = attention_geometry(config)
    if heads % tensor_parallel or shared % tensor_parallel:
        raise ValueError(
            f"tensor_parallel is {tensor_parallel}, but {where} has {heads} heads and {shared} key/value heads: choose "
            "a number that divides both"
        )
