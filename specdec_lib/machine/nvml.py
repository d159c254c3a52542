"""What the NVIDIA driver says about the device in use: the only module that talks to NVML.

Each reading may fail alone - an old driver, a virtual machine, a part of a GPU (MIG). It is then None, and `missing`
holds the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml
import torch

from specdec_lib.hardware.catalog import identify

POWER_CAP = "power cap"
THROTTLE_REASONS = {  # bits of nvmlDeviceGetCurrentClocksThrottleReasons that mean slower than the device could be
    0x04: POWER_CAP,
    0x08: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}

Reading = tuple[str, Callable[[Any], Any]]
READINGS: dict[str, Reading] = {  # its name in `missing`, and how to read it
    # The counter since the driver was loaded, which moves every 20 to 100 ms.
    "energy_millijoules": ("energy", lambda device: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(device))),
    # The share of the last sampling period (up to a second) in which any kernel ran.
    "utilization_percent": ("utilization", lambda device: int(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)),
    "throttle_bits": ("throttling", lambda device: int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(device) or 0)),
    "memory_used_bytes": ("memory", lambda device: int(pynvml.nvmlDeviceGetMemoryInfo(device).used)),
    "process_ids": ("processes", lambda device: [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)]),
    "sm_clock_mhz": ("clock", lambda device: pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM)),
}
FACTS: dict[str, Reading] = {  # the same of what does not change during a run
    "name": ("name", lambda device: str(pynvml.nvmlDeviceGetName(device))),
    "driver": ("driver", lambda _: str(pynvml.nvmlSystemGetDriverVersion())),
    "memory_bytes": ("memory", lambda device: int(pynvml.nvmlDeviceGetMemoryInfo(device).total)),
    "power_limit_watts": ("power limit", lambda device: pynvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1e3),
    "default_power_limit_watts": (
        "default power limit",
        lambda device: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(device) / 1e3,
    ),
}


class NvmlUnavailableError(RuntimeError):
    """There is no device to read, and why."""


@dataclass
class Device:
    """An open device."""

    handle: Any
    missing: dict[str, str] = field(default_factory=dict)  # reading: why the last attempt gave nothing

    def read(self, reading: str) -> Any:
        """One of `READINGS` or `FACTS`, or None with the reason in `missing`."""
        name, call = (READINGS | FACTS)[reading]
        self.missing.pop(name, None)
        try:
            return call(self.handle)
        except pynvml.NVMLError as error:
            self.missing[name] = str(error)
            return None

    def facts(self) -> dict[str, Any]:
        """What does not change during a run, ready for `environment.json`; `missing` says why a value is null."""
        facts = {name: self.read(name) for name in FACTS} | {"product": None}
        name, memory_bytes, limit = facts["name"], facts["memory_bytes"], facts["default_power_limit_watts"]
        if name is None or memory_bytes is None:
            self.missing["product"] = "the driver gave no name or no memory"
        else:
            try:
                facts["product"] = identify(name, memory_bytes, limit)
            except ValueError as error:
                self.missing["product"] = str(error)
        return facts | {"missing": dict(self.missing)}


def open_device(uuid: str | None = None) -> Device:
    """Open the device with this UUID, by default the one that PyTorch computes on; or a NvmlUnavailableError."""
    try:
        pynvml.nvmlInit()
        return Device(pynvml.nvmlDeviceGetHandleByUUID(uuid or _uuid_of_torch()))
    except pynvml.NVMLError as error:
        raise NvmlUnavailableError(f"no NVIDIA device can be read: {error}") from None


def throttle_names(bits: int) -> list[str]:
    """The reasons among `bits` that make a device slower than it could be."""
    return [name for bit, name in THROTTLE_REASONS.items() if bits & bit]


def is_throttled(reasons: Sequence[str]) -> bool:
    """Whether a device with these reasons ran as it should not; at its power limit every GPU lowers its clock."""
    return any(reason != POWER_CAP for reason in reasons)


def _uuid_of_torch() -> str:
    """PyTorch may drop the prefix that tells a whole GPU from a part: the driver knows one of the two."""
    if not torch.cuda.is_available():
        raise NvmlUnavailableError("PyTorch sees no CUDA device")
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    if uuid.startswith(("GPU-", "MIG-")):
        return uuid
    try:
        pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return f"MIG-{uuid}"
    return f"GPU-{uuid}"
