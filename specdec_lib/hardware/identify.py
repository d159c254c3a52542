"""Which product a GPU is: "A100" and "H100" are several, with different memory, bandwidth and power."""

from __future__ import annotations

import re

from specdec_lib.hardware.catalog import DENSE_PEAKS, load_gpus

TOLERANCE = 0.1  # of memory and power: vendors' 80 GB are read as 85.5e9 bytes on an H100 and 85.9e9 on an A100


def identify(name: str, memory_bytes: int, default_power_limit_watts: float | None = None) -> str:
    """The key in `gpus.yaml` of the product that the driver calls `name`.

    A listed name decides, and the memory must agree with it. Virtual machines often report the family only; then memory
    and the factory's power limit decide.

    Args:
        name: from NVML, such as "NVIDIA A100-SXM4-80GB"; the memory and the power limit are those of the whole device.

    Raises:
        ValueError: a part of a GPU (MIG), a product that is not in the catalog, or facts that fit several or none.
    """
    gpus = load_gpus()
    if " MIG " in f"{name} ":
        raise ValueError(f"{name!r} is a part of a GPU (MIG): figures of the whole product do not hold for it")
    listed = [key for key, gpu in gpus.items() if name in gpu.nvml_names]
    # a family is a word of the name; "GRID A100X-80C" has no such word
    words = [family for family in DENSE_PEAKS if re.search(rf"(?<![A-Z0-9]){family}(?![A-Z0-9])", name.upper())]
    of_family = [key for key, gpu in gpus.items() if gpu.product.split()[0] in words]
    fitting = [k for k in listed or of_family if abs(memory_bytes / gpus[k].memory_gb / 1e9 - 1) <= TOLERANCE]
    if not listed and default_power_limit_watts is not None:
        fitting = [k for k in fitting if abs(default_power_limit_watts / gpus[k].tdp_watts - 1) <= TOLERANCE]
    if len(fitting) == 1:
        return fitting[0]
    power = "an unknown power limit" if default_power_limit_watts is None else f"{default_power_limit_watts:g} W"
    facts = f"{name!r} with {memory_bytes / 1e9:.1f} GB and {power}"
    if fitting:
        raise ValueError(f"{facts} may be {' or '.join(fitting)}: add its name to nvml_names in hardware/gpus.yaml")
    raise ValueError(f"{facts} is no product of hardware/gpus.yaml: add an entry with its dense figures and source")
