"""What a run ran on: written beside the results, so that a number can be traced to its circumstances."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from specdec_lib.config import BENCHMARK_VERSION, StudyParams
from specdec_lib.hardware.catalog import price
from specdec_lib.machine.nvml import NvmlUnavailableError, open_device
from specdec_lib.study.cell_files import write_at_once

FILE = "environment.json"
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
    """Refuse to run a study on another device than its params are for.

    Raises:
        ValueError: naming the device that was asked for and the one that is here.
    """
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
    """Refuse a study whose price is of another product than the GPU that is here: its dollars would be wrong.

    Args:
        product: a key of `hardware/gpus.yaml`; None where the driver does not tell, and then nothing is refused.

    Raises:
        ValueError: naming both.
    """
    expected = price(params.price).gpu
    if params.device == "cuda" and product not in (None, expected):
        raise ValueError(
            f"this is a {product}, and price {params.price} is of {expected}: name a price of a {product} in "
            f"params/{params.gpu}.yaml, or add one to hardware/prices.yaml"
        )


def product_here(device: str) -> str | None:
    """The key in `hardware/gpus.yaml` of the GPU that is here; None on a CPU, and where the driver does not tell."""
    if device != "cuda":
        return None
    try:
        product: str | None = open_device().facts()["product"]
    except NvmlUnavailableError:
        return None
    return product


def describe_environment(params: StudyParams) -> dict[str, Any]:
    """Start, hardware, versions, commit and params, as JSON-ready values."""
    cuda = params.device == "cuda"
    return {
        "started": now(),
        "device_name": device_name(params.device),
        "cpu": {"name": device_name("cpu"), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "memory_bytes": psutil.virtual_memory().total,
        "cuda": _cuda_facts() if cuda else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "benchmark_version": BENCHMARK_VERSION,
        "params": params.model_dump(),
    }


def write_environment(folder: Path, facts: dict[str, object], run_id: str) -> None:
    """Write `environment.json`: the facts of the latest run, and under `runs` those of every run with rows here.

    `ended` is null until `stamp_end`: a run that was killed has no end.
    """
    facts = facts | {"ended": None}
    _write(folder, {"run_id": run_id, **facts, "runs": read_environment(folder).get("runs", {}) | {run_id: facts}})


def adopt_environment(folder: Path, theirs: dict[str, Any]) -> None:
    """Add what another machine wrote with `write_environment` about its runs of the same study."""
    _write(folder, theirs | {"runs": read_environment(folder).get("runs", {}) | theirs["runs"]})


def changed_files(folder: Path, files: dict[str, str]) -> list[str]:
    """Weight files that are not the ones that the last run in `folder` loaded."""
    before: dict[str, str] = read_environment(folder).get("files", files)
    return sorted(name for name in files.keys() | before.keys() if files.get(name) != before.get(name))


def stamp_end(folder: Path, run_id: str) -> None:
    """Say that a run that wrote its environment has ended now."""
    add_facts(folder, run_id, ended=now())


def add_facts(folder: Path, run_id: str, **facts: object) -> None:
    """Add to, or replace, what `environment.json` says of a run."""
    known = read_environment(folder)
    known["runs"][run_id] |= facts
    _write(folder, known | (facts if known["run_id"] == run_id else {}))


def read_environment(folder: Path) -> dict[str, Any]:
    """What `write_environment` wrote; empty if there is nothing yet."""
    path = folder / FILE
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return facts


def _write(folder: Path, facts: dict[str, Any]) -> None:
    write_at_once(folder / FILE, json.dumps(facts, indent=2) + "\n")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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
