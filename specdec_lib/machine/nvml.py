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

from specdec_lib.hardware.identify import identify

POWER_CAP = "power cap"
THROTTLE_REASONS = {  # bits of nvmlDeviceGetCurrentClocksThrottleReasons that mean slower than the device could be
    0x04: POWER_CAP,
    0x08: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}
WHOLE_GPU_ONLY = "this is a part of a GPU (MIG), and the driver counts this for the whole GPU only"


class NvmlUnavailableError(RuntimeError):
    """There is no device to read, and why."""


@dataclass
class Device:
    """An open device; `gpu` is the whole GPU that a part (MIG) belongs to, else the device itself."""

    handle: Any
    gpu: Any
    is_part: bool
    missing: dict[str, str] = field(default_factory=dict)  # reading: why the last attempt gave nothing

    def read(self, name: str, call: Callable[[Any], Any], whole_gpu: bool = False) -> Any:
        """One reading by a function of NVML, or None with the reason in `missing`.

        Args:
            whole_gpu: the reading exists for whole GPUs only, and says nothing of a part of one.
        """
        self.missing.pop(name, None)
        if whole_gpu and self.is_part:
            self.missing[name] = WHOLE_GPU_ONLY
            return None
        try:
            return call(self.handle)
        except pynvml.NVMLError as error:
            self.missing[name] = str(error)
            return None

    def energy_millijoules(self) -> int | None:
        """The counter since the driver was loaded; it moves every 20 to 100 ms."""
        return self.read("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption, whole_gpu=True)

    def utilization_percent(self) -> int | None:
        """Share of the driver's last sampling period (up to a second) in which any kernel ran."""
        rates = self.read("utilization", pynvml.nvmlDeviceGetUtilizationRates, whole_gpu=True)
        return None if rates is None else int(rates.gpu)

    def throttle_bits(self) -> int | None:
        """Why clocks are below what they could be, of the whole GPU, as the bits of `THROTTLE_REASONS` and others."""
        return self.read("throttling", lambda _: int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.gpu) or 0))

    def sm_clock_mhz(self) -> int | None:
        """The present clock of the multiprocessors."""
        return self.read("clock", lambda _: pynvml.nvmlDeviceGetClockInfo(self.gpu, pynvml.NVML_CLOCK_SM))

    def memory_used_bytes(self) -> int | None:
        """Memory in use by everybody on the device."""
        memory = self.read("memory", pynvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else int(memory.used)

    def process_ids(self) -> list[int] | None:
        """Processes that compute on the device, as the driver numbers them."""
        processes = self.read("processes", pynvml.nvmlDeviceGetComputeRunningProcesses)
        return None if processes is None else [int(process.pid) for process in processes]

    def facts(self) -> dict[str, Any]:
        """What does not change during a run, ready for `environment.json`; `missing` says why a value is null."""
        memory = self.read("memory", pynvml.nvmlDeviceGetMemoryInfo)
        gpu_memory = self.read("gpu memory", lambda _: pynvml.nvmlDeviceGetMemoryInfo(self.gpu).total)
        name = self.read("name", pynvml.nvmlDeviceGetName)
        limit = self.read("power limit", lambda _: pynvml.nvmlDeviceGetEnforcedPowerLimit(self.gpu))
        default = self.read("default power limit", lambda _: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(self.gpu))
        max_clock = self.read("max clock", lambda _: pynvml.nvmlDeviceGetMaxClockInfo(self.gpu, pynvml.NVML_CLOCK_SM))
        memory_clock = self.read(
            "memory clock", lambda _: pynvml.nvmlDeviceGetClockInfo(self.gpu, pynvml.NVML_CLOCK_MEM)
        )
        facts = {
            "name": name,
            "product": self._product(name, gpu_memory, default),
            "uuid": self.read("uuid", pynvml.nvmlDeviceGetUUID),
            "mig": self.is_part,
            "driver": self.read("driver", lambda _: pynvml.nvmlSystemGetDriverVersion()),
            "memory_bytes": None if memory is None else int(memory.total),
            "power_limit_watts": None if limit is None else limit / 1e3,
            "default_power_limit_watts": None if default is None else default / 1e3,
            "sm_clock_mhz": self.sm_clock_mhz(),
            "max_sm_clock_mhz": max_clock,
            "memory_clock_mhz": memory_clock,
        }
        return facts | {"missing": dict(self.missing)}

    def _product(self, name: str | None, memory_bytes: int | None, default_limit: int | None) -> str | None:
        """The key of `gpus.yaml`, or None with the reason."""
        if name is None or memory_bytes is None:
            self.missing["product"] = "the driver gave no name or no memory"
            return None
        try:
            return identify(name, memory_bytes, None if default_limit is None else default_limit / 1e3)
        except ValueError as error:
            self.missing["product"] = str(error)
            return None


def open_device(uuid: str | None = None) -> Device:
    """Open the device with this UUID, by default the one that PyTorch computes on.

    Raises:
        NvmlUnavailableError: no driver, no library, or no such device; with the reason.
    """
    try:
        pynvml.nvmlInit()
        return _device(pynvml.nvmlDeviceGetHandleByUUID(uuid or _uuid_of_torch()))
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


def _device(handle: Any) -> Device:
    try:
        is_part = bool(pynvml.nvmlDeviceIsMigDeviceHandle(handle))
    except pynvml.NVMLError:  # a driver or a product older than MIG
        is_part = False
    gpu = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if is_part else handle
    return Device(handle, gpu, is_part)
