"""What a device did while a call ran: memory, energy, utilisation, clocks. What it cannot tell is None, never 0."""

from __future__ import annotations

import functools
import operator
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import torch

from specdec_lib.machine.nvml import Device, NvmlUnavailableError, is_throttled, open_device, throttle_names

SAMPLE_SECONDS = 0.1
ENERGY_SECONDS = 0.5  # a shorter window is mostly the counter's own step of up to 0.1 s
UTILIZATION_SECONDS = 1.0  # the driver averages over up to a second: a shorter window shows what ran before it
SAMPLED = ("throttle_bits", "memory_used_bytes", "sm_clock_mhz", "utilization_percent")
NO_PEAK = "this system reports no peak: it is what the process held after the call"
NO_RESET = "its peak cannot be reset here: it is that of the whole life of the process"
MEMORY = (
    *("peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "device_memory_used_bytes"),
    "process_peak_rss_bytes",
)
_SUMS = (*MEMORY, "energy_joules_per_token", "foreign_processes")
_DRIVER_COLUMNS = (
    *("gpu_utilization_percent", "energy_joules_per_token", "throttled", "throttle_reasons", "sm_clock_mhz"),
    "foreign_processes",
)
_PROC = Path("/proc/self")

Column = float | int | str | bool | None


class Telemetry:
    """Watches a device during a `with` block; `columns` are its findings.

    Energy is the difference of the driver's counter. The counter lags by up to 0.1 s at either end, which cancels on
    average: the mean over repetitions is worth more than one row. On other devices than CUDA only the memory of the
    process is known, and the note says so. A `uuid` is that of the driver; by default PyTorch's, on CUDA.
    """

    def __init__(self, device: torch.device | str, uuid: str | None = None):
        self.device = torch.device(device)
        self.nvml: Device | None = None
        self.unavailable = f"{self.device.type} has no NVIDIA driver to ask"
        if self.device.type == "cuda" or uuid:
            try:
                self.nvml = open_device(uuid)
            except NvmlUnavailableError as error:
                self.unavailable = str(error)

    def __enter__(self) -> Self:
        self.peak_note = reset_peaks(self.device)
        self.samples: list[dict[str, int | None]] = []
        self.energy_before = self.nvml.read("energy_millijoules") if self.nvml else None
        self.started = time.monotonic()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._sample, args=[self.nvml], daemon=True)
        if self.nvml:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.started
        self.stopping.set()
        if self.nvml:
            self.thread.join()
            self.energy_after = self.nvml.read("energy_millijoules")
            self.samples.append({name: self.nvml.read(name) for name in SAMPLED})

    def columns(self, new_tokens: int) -> dict[str, Column]:
        """The telemetry columns of a row that emitted `new_tokens`; `telemetry_note` gives the reason for each null."""
        notes = {"process memory": self.peak_note} if self.peak_note else {}
        columns: dict[str, Column] = {**memory_columns(self.device), **dict.fromkeys(_DRIVER_COLUMNS)}
        if self.nvml is None:
            return columns | {"telemetry_note": _text(notes | {"telemetry": self.unavailable})}
        foreign = self._foreign(self.nvml, notes)
        columns["foreign_processes"] = foreign
        if bits := self._seen("throttle_bits"):
            reasons = throttle_names(functools.reduce(operator.or_, bits))
            columns |= {"throttled": is_throttled(reasons), "throttle_reasons": ", ".join(reasons) or None}
        if used := self._seen("memory_used_bytes"):
            columns["device_memory_used_bytes"] = max(used)
        if clocks := self._seen("sm_clock_mhz"):
            columns["sm_clock_mhz"] = statistics.median_low(clocks)
        shares = self._seen("utilization_percent")
        if shares and self._is_alone("utilization", UTILIZATION_SECONDS, foreign, notes):
            columns["gpu_utilization_percent"] = statistics.mean(shares)
        known = self.energy_before is not None and self.energy_after is not None
        if known and self._is_alone("energy", ENERGY_SECONDS, foreign, notes) and new_tokens > 0:
            columns["energy_joules_per_token"] = (self.energy_after - self.energy_before) / 1e3 / new_tokens
        return columns | {"telemetry_note": _text(self.nvml.missing | notes)}

    def _sample(self, nvml: Device) -> None:
        while not self.stopping.wait(SAMPLE_SECONDS):
            self.samples.append({name: nvml.read(name) for name in SAMPLED})

    def _seen(self, name: str) -> list[int]:
        return [value for sample in self.samples if (value := sample[name]) is not None]

    def _is_alone(self, name: str, least_s: float, foreign: int | None, notes: dict[str, str]) -> bool:
        """Whether a reading is of this call, which took at least `least_s` seconds; if not, notes why."""
        if foreign:
            notes[name] = "other processes ran on the device"
        elif self.seconds < least_s:
            notes[name] = f"the call took {self.seconds:.2f} s, less than the {least_s:g} s that it needs"
        return name not in notes

    def _foreign(self, nvml: Device, notes: dict[str, str]) -> int | None:
        """How many other processes compute on the device.

        A container has process numbers of its own, so that this process may stand in the driver's list under another
        number: then one of the list is taken to be this one, if it uses the device at all.
        """
        processes = nvml.read("process_ids")
        if processes is None:
            return None
        if os.getpid() in processes or not torch.cuda.is_initialized():
            return sum(process != os.getpid() for process in processes)
        if not processes:
            notes["processes"] = "the driver lists no process, not even this one"
            return None
        return len(processes) - 1


def of_all_devices(each: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """The columns of a call that several processes made together, each on a device of its own.

    Bytes, joules and foreign processes are summed; utilisation is the mean, the clock the lowest. A call is throttled
    if one device was. A value that one device lacks is null.
    """
    merge: dict[str, Callable[[list[Any]], Any]] = dict.fromkeys(_SUMS, sum)
    merge |= {"gpu_utilization_percent": statistics.mean, "sm_clock_mhz": min, "throttled": any}
    values = {name: [columns[name] for columns in each] for name in merge if name in each[0]}
    merged: dict[str, Column] = {name: None if None in found else merge[name](found) for name, found in values.items()}
    reasons = [reason for columns in each for reason in (columns["throttle_reasons"] or "").split(", ") if reason]
    notes = [note for columns in each if (note := columns["telemetry_note"])]
    sums = f"bytes and joules are sums over {len(each)} processes"
    return merged | {
        "throttle_reasons": ", ".join(dict.fromkeys(reasons)) or None,
        "telemetry_note": "; ".join([*dict.fromkeys(notes), sums]),
    }


def reset_peaks(device: torch.device) -> str | None:
    """Forget earlier peaks, so that the next reading belongs to what runs from here on; says so if one will not."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if _peak_rss() is None:
        return NO_PEAK
    try:
        (_PROC / "clear_refs").write_text("5")  # Linux: reset the peak resident set size
    except OSError:
        return NO_RESET
    return None


def memory_columns(device: torch.device) -> dict[str, int | None]:
    """Bytes since the last `reset_peaks`: allocator peaks and device use on CUDA, peak resident set of the process."""
    columns: dict[str, int | None] = dict.fromkeys(MEMORY)
    columns["process_peak_rss_bytes"] = _peak_rss() or psutil.Process().memory_info().rss
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        columns["peak_memory_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        columns["peak_memory_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
        columns["device_memory_used_bytes"] = total - free
    return columns


def _peak_rss() -> int | None:
    """In bytes; None where the system does not tell, as outside Linux or in gVisor."""
    try:
        status = (_PROC / "status").read_text()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None


def _text(notes: dict[str, str]) -> str | None:
    return "; ".join(f"{name}: {reason}" for name, reason in sorted(notes.items())) or None
