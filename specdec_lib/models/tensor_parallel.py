"""A target spread over several devices of one host: every process holds a slice of each matrix, and all decode alike.

transformers cuts the weights by its own plan and adds the collectives (`DistributedConfig`, once `tp_plan="auto"`).
What is left to this library: the cache holds the key/value heads of this process alone, and each process runs the same
draft and draws the same random numbers. The logits are gathered from slices that one process each computed, so that all
processes see the same bits and take the same decisions.
"""

from __future__ import annotations

import os
from typing import Any

import torch


def loading(tensor_parallel: int, device: str) -> dict[str, Any]:
    """What `from_pretrained` needs to put a model on one device, or this process's part of it."""
    if tensor_parallel == 1:
        return {"device_map": device}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=tensor_parallel)}


def devices_of(model: Any) -> int:
    """How many devices a model is spread over."""
    return getattr(model, "_tp_size", None) or 1


def key_value_heads(model: Any) -> int:
    """The key/value heads that this process holds: all of them, or its share of a model that is spread."""
    config = model.config
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads // devices_of(model)


def check_processes(tensor_parallel: int, device: str) -> None:
    """Refuse a spread that these processes or this machine cannot make.

    Raises:
        ValueError: another number of processes, or fewer devices.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != tensor_parallel:
        raise ValueError(
            f"tensor_parallel is {tensor_parallel}, which needs that many processes, and there are {processes}: start "
            f"them with torchrun --nproc-per-node {tensor_parallel}"
        )
    check_devices(tensor_parallel, device)


def check_devices(tensor_parallel: int, device: str) -> None:
    """Refuse a spread over more devices than this machine has.

    Raises:
        ValueError: naming how many there are.
    """
    if device == "cuda" and (here := torch.cuda.device_count()) < tensor_parallel:
        raise ValueError(f"tensor_parallel is {tensor_parallel}, but PyTorch sees {here} CUDA devices: lower it")


def check_heads(config: Any, tensor_parallel: int, where: str) -> None:
    """Refuse a model whose heads cannot be dealt out evenly.

    Raises:
        ValueError: naming the numbers of heads.
    """
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    if heads % tensor_parallel or shared % tensor_parallel:
        raise ValueError(
            f"tensor_parallel is {tensor_parallel}, but {where} has {heads} heads and {shared} key/value heads: choose "
            "a number that divides both"
        )
