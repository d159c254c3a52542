"""The machine at hand: its device, versions and commit, and whether a study may run on it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from specdec_lib.config import BENCHMARK_VERSION, StudyParams
from specdec_lib.hardware.catalog import price
from specdec_lib.machine.files import now
from specdec_lib.machine.nvml import NvmlUnavailableError, open_device

PACKAGES = ("torch", "transformers", "numpy", "pandas", "scipy", "safetensors")


def device_name(device: str) -> str:
    """The device as it calls itself: the CUDA device's name, or the processor's model name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def check_device(params: StudyParams) -> None:
    """Refuse to run a study on another device than its params are for, by a ValueError that names both."""
    if params.device == "cuda" and not torch.cuda.is_available():
        here = f"{device_name('cpu')} and no CUDA device"
    elif re.search(rf"(?<![A-Z0-9]){re.escape(params.device_name)}", here := device_name(params.device), re.IGNORECASE):
        return
    blind = "; if it is one, make TORCH=cuda installs a PyTorch that sees it: this one is built without CUDA"
    raise ValueError(
        f"GPU={params.gpu} needs a device whose name contains {params.device_name!r}, but this machine has {here}: "
        "run it on such a machine, or choose other params, such as GPU=cpu"
        + (blind if params.device == "cuda" and torch.version.cuda is None else "")
    )


def check_product(params: StudyParams, product: str | None) -> None:
    """Refuse, by a ValueError, a study whose price is of another product than the GPU here: its dollars would be wrong.

    `product` is a key of `hardware/gpus.yaml`; None where the driver does not tell, and then nothing is refused.
    """
    expected = price(params.price).gpu
    if params.device == "cuda" and product not in (None, expected):
        raise ValueError(
            f"this is a {product}, and price {params.price} is of {expected}: name a price of a {product} in "
            f"params/{params.gpu}.yaml, or add one to hardware/prices.yaml"
        )


def product_here(device: str) -> str | None:
    """The key in `hardware/gpus.yaml` of the GPU that is here; None on a CPU, and where the driver does not tell."""
    try:
        product: str | None = open_device().facts()["product"] if device == "cuda" else None
    except NvmlUnavailableError:
        return None
    return product


def describe_environment(params: StudyParams) -> dict[str, Any]:
    """Start, hardware, versions, commit and params, as JSON-ready values."""
    return {
        "started": now(),
        "device_name": device_name(params.device),
        "cpu": {"name": device_name("cpu"), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "memory_bytes": psutil.virtual_memory().total,
        "cuda": _cuda_facts() if params.device == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "benchmark_version": BENCHMARK_VERSION,
        "params": params.model_dump(),
    }


def _cuda_facts() -> dict[str, Any]:
    """Toolkit and memory of the CUDA device, and what its driver says of it."""
    facts: dict[str, Any] = {"version": torch.version.cuda, "memory_bytes": torch.cuda.mem_get_info()[1]}
    try:
        return facts | open_device().facts()
    except NvmlUnavailableError as error:
        return facts | {"missing": {"driver": str(error)}}


def _commit() -> str | None:
    """The commit of this checkout, with a + if files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
