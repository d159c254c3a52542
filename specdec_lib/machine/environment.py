"""The machine at hand: device, versions and commit, whether a study may run on it, and how a pair is computed here."""

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
from specdec_lib.decoding.captured_loop import captured_graphs, graph_facts
from specdec_lib.hardware.catalog import price
from specdec_lib.kernels.build import kernel_facts
from specdec_lib.kernels.gpu import ops as gpu_kernels
from specdec_lib.machine.files import now
from specdec_lib.machine.nvml import NvmlUnavailableError, open_device
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.tensor_parallel import devices_of

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


def engine_facts(pair: Pair) -> dict[str, object]:
    """What computes target and draft, whether steps are captured (as known by now), and what tokens they share."""
    head = "kernels, block and output rows in 8 bits" if getattr(pair.draft, "fused", None) else "eager"
    engine: dict[str, object] = {
        "target": pair.target.engine,
        "draft": pair.draft.engine if isinstance(pair.draft, LanguageModel) else head,
        "tensor_parallel": devices_of(pair.target.model),
        "not_compiled": pair.target.why_not_compiled,
        "graphs": graph_facts(pair.target),
    }
    vocabulary = pair.translation.facts() if pair.translation else {"vocabularies": "the same"}
    of_device = {"cpu": kernel_facts, "cuda": gpu_kernels.kernel_facts}.get(pair.target.device.type, dict)
    return {"engine": engine, "vocabulary": vocabulary} | of_device()


def path_of(target: LanguageModel) -> str:
    """The way that this model's computations have taken: precision, engine, and whether steps are replays of graphs."""
    return f"{target.precision}, {target.engine}{', captured steps' if captured_graphs(target) else ''}"


def compiler_of(target: LanguageModel) -> str:
    """What decides a cell's numbers next to the versions of packages; names several devices only."""
    if target.engine != "kernels":
        spread = f", tensor parallel over {number}" if (number := devices_of(target.model)) > 1 else ""
        return ("kernels none" if target.engine == "eager" else target.engine) + spread
    return f"kernels {kernel_facts()['kernels']}"
