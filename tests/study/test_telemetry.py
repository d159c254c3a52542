"""Telemetry through the real NVML binding, on a driver library that these tests compile."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from specdec_lib.machine import telemetry
from specdec_lib.machine.nvml import throttle_names
from specdec_lib.machine.telemetry import Telemetry, of_all_devices

FOLDER = Path(__file__).parents[1] / "support" / "stub_nvml"
CASES = ["healthy", "no_driver", "no_energy", "throttled", "power_limit", "second_process", "mig", "short"]
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a process sees whose driver is the stub, by case: the telemetry of a call, and the device's facts."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"  # the name that the binding asks the loader for
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, FOLDER / "nvml.c"], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(FOLDER.parents[2])}
    command = [sys.executable, FOLDER / "watch_once.py", *CASES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_healthy_device_tells_everything(seen):
    columns = seen["healthy"]["columns"]
    assert columns["energy_joules_per_token"] == 0.5  # 150 J over 300 tokens
    assert columns["gpu_utilization_percent"] == 80
    assert columns["throttled"] is False
    assert columns["throttle_reasons"] is None
    assert columns["sm_clock_mhz"] == 1410
    assert columns["device_memory_used_bytes"] == 2**30
    assert columns["foreign_processes"] == 0
    assert columns["telemetry_note"] is None


def test_facts_name_the_product_and_its_power_limit(seen):
    facts = seen["healthy"]["facts"]
    assert (facts["name"], facts["product"]) == ("NVIDIA A100-SXM4-80GB", "a100-sxm-80")
    assert (facts["power_limit_watts"], facts["default_power_limit_watts"]) == (330, 400)
    assert facts["driver"] == "570.00.01"
    assert facts["missing"] == {}


def test_without_a_driver_everything_is_null_with_the_reason(seen):
    columns = seen["no_driver"]["columns"]
    assert columns["energy_joules_per_token"] is None
    assert columns["gpu_utilization_percent"] is None
    assert columns["throttled"] is None
    assert columns["foreign_processes"] is None
    assert "Driver Not Loaded" in columns["telemetry_note"]
    assert "Driver Not Loaded" in seen["no_driver"]["facts"]["unavailable"]


def test_an_energy_counter_that_the_device_lacks_is_null_and_the_rest_is_there(seen):
    columns = seen["no_energy"]["columns"]
    assert columns["energy_joules_per_token"] is None
    assert columns["telemetry_note"] == "energy: Not Supported"
    assert columns["gpu_utilization_percent"] == 80


def test_a_throttled_device_is_flagged_with_its_reasons(seen):
    columns = seen["throttled"]["columns"]
    assert columns["throttled"] is True
    assert columns["throttle_reasons"] == "power cap, hardware thermal"


def test_a_device_at_its_power_limit_says_so_and_its_rows_count(seen):
    """That is how a GPU runs under load; rows that are thrown away would be nearly all of them."""
    columns = seen["power_limit"]["columns"]
    assert columns["throttled"] is False
    assert columns["throttle_reasons"] == "power cap"
    both = of_all_devices([columns, columns])
    assert (both["throttled"], both["throttle_reasons"]) == (False, "power cap")
    assert of_all_devices([columns, seen["throttled"]["columns"]])["throttled"] is True


def test_what_a_second_process_spoils_is_null(seen):
    columns = seen["second_process"]["columns"]
    assert columns["foreign_processes"] == 1
    assert columns["energy_joules_per_token"] is None
    assert "energy: other processes ran on the device" in columns["telemetry_note"]


def test_a_part_of_a_gpu_has_no_energy_or_utilisation_of_its_own(seen):
    columns, facts = seen["mig"]["columns"], seen["mig"]["facts"]
    assert columns["energy_joules_per_token"] is None
    assert columns["gpu_utilization_percent"] is None
    assert "energy: Not Supported" in columns["telemetry_note"]
    assert facts["product"] is None
    assert "a part of a GPU" in facts["missing"]["product"]
    assert facts["memory_bytes"] == 9728 * 2**20


def test_a_call_shorter_than_the_counters_step_has_no_energy(seen):
    columns = seen["short"]["columns"]
    assert columns["energy_joules_per_token"] is None
    assert "less than the 0.5 s that it needs" in columns["telemetry_note"]


def test_a_machine_without_gpu_says_so_and_knows_the_memory_of_the_process():
    with Telemetry("cpu") as watched:
        torch.zeros(10)
    columns = watched.columns(new_tokens=1)
    assert "telemetry: cpu has no NVIDIA driver to ask" in columns["telemetry_note"]
    assert columns["energy_joules_per_token"] is None
    assert columns["process_peak_rss_bytes"] > 0


@pytest.mark.parametrize(
    ("status", "peak", "note"),
    [
        ("VmHWM:\t2048 kB\n", 2 * 2**20, "its peak cannot be reset here: it is that of the whole life"),
        ("VmRSS:\t2048 kB\n", None, "this system reports no peak: it is what the process held after"),  # gVisor
        (None, None, "this system reports no peak"),  # no Linux
    ],
)
def test_where_the_system_keeps_no_peak_of_a_call_the_row_says_what_its_memory_is(
    tmp_path, monkeypatch, status, peak, note
):
    monkeypatch.setattr(telemetry, "_PROC", tmp_path)
    (tmp_path / "clear_refs").mkdir()  # nothing that could be written
    if status:
        (tmp_path / "status").write_text(status)
    with Telemetry("cpu") as watched:
        pass
    columns = watched.columns(new_tokens=1)
    assert columns["process_peak_rss_bytes"] == peak or (peak is None and columns["process_peak_rss_bytes"] > 10e6)
    assert columns["telemetry_note"].startswith(f"process memory: {note}")


def test_idle_and_clock_settings_are_no_throttling():
    assert throttle_names(0x1 | 0x2 | 0x10) == []
    assert throttle_names(0x04 | 0x80) == ["power cap", "power brake"]
