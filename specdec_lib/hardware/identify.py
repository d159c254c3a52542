"""Which product a GPU is: "A100" and "H100" are several, with different memory, bandwidth and power."""

from __future__ import annotations

import re

from specdec_lib.hardware.catalog import DENSE_PEAKS, Gpu, load_gpus

MEMORY_TOLERANCE = 0.1  # vendors' 80 GB are read as 85.5e9 bytes on an H100 and 85.9e9 on an A100
POWER_TOLERANCE = 0.1


def identify(name: str, memory_bytes: int, default_power_limit_watts: float | None = None) -> str:
    """The key in `gpus.yaml` of the product that the driver calls `name`.

    A listed name decides, and the memory must agree with it. Virtual machines often report the family only; then memory
    and the factory's power limit decide.

    Args:
        name: from NVML, such as "NVIDIA A100-SXM4-80GB".
        memory_bytes: of the whole device.
        default_power_limit_watts: from NVML; None if the driver does not report it.

    Raises:
        ValueError: a part of a GPU (MIG), a product that is not in the catalog, or facts that fit several or none.
    """
    gpus = load_gpus()
    if " MIG " in f"{name} ":
        raise ValueError(f"{name!r} is a part of a GPU (MIG): figures of the whole product do not hold for it")
    listed = [key for key, gpu in gpus.items() if name in gpu.nvml_names]
    fitting = [key for key in listed or _family(name, gpus) if _fits(gpus[key], memory_bytes)]
    if not listed and default_power_limit_watts is not None:
        fitting = [key for key in fitting if _near(default_power_limit_watts, gpus[key].tdp_watts, POWER_TOLERANCE)]
    if len(fitting) == 1:
        return fitting[0]
    power = "an unknown power limit" if default_power_limit_watts is None else f"{default_power_limit_watts:g} W"
    facts = f"{name!r} with {memory_bytes / 1e9:.1f} GB and {power}"
    if fitting:
        raise ValueError(f"{facts} may be {' or '.join(fitting)}: add its name to nvml_names in hardware/gpus.yaml")
    raise ValueError(f"{facts} is no product of hardware/gpus.yaml: add an entry with its dense figures and source")


def _family(name: str, gpus: dict[str, Gpu]) -> list[str]:
    """Products of the family that is a word of the name; "GRID A100X-80C" has no such word."""
    families = [family for family in DENSE_PEAKS if re.search(rf"(?<![A-Z0-9]){family}(?![A-Z0-9])", name.upper())]
    return [key for key, gpu in gpus.items() if gpu.product.split()[0] in families]


def _fits(gpu: Gpu, memory_bytes: int) -> bool:
    return _near(memory_bytes, gpu.memory_gb * 1e9, MEMORY_TOLERANCE)


def _near(value: float, nominal: float, tolerance: float) -> bool:
    return abs(value / nominal - 1) <= tolerance
