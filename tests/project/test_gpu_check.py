"""The first minute on a machine: a verdict for every item, whatever goes wrong with one of them."""

import pandas as pd
import pynvml
import pytest
import torch

from specdec_lib import __main__ as cli
from specdec_lib.cli import gpu_check
from specdec_lib.config import load_params
from specdec_lib.machine.nvml import Device

SMOKE = load_params("smoke")
FACTS = {
    "power_limit_watts": 400.0,
    "sm_clock_mhz": 1410,
    "max_sm_clock_mhz": 1410,
    "memory_bytes": 80 * 2**30,
    "driver": "570.00.01",
    "missing": {},
}
COLUMNS = {
    "energy_joules_per_token": 300.0,
    "gpu_utilization_percent": 99.0,
    "throttled": False,
    "throttle_reasons": None,
    "foreign_processes": 0,
    "telemetry_note": None,
}


def test_a_cpu_passes_all_that_needs_no_gpu_and_says_why_the_rest_is_skipped(capsys):
    assert cli.main(["gpu-check", "--gpu", "smoke"]) == 0
    said = capsys.readouterr().out
    assert "pass     greedy exactness" in said
    assert "2 sound samplers pass, the wrong one is rejected" in said
    assert "paths through (float64, eager)" in said
    assert "pass     float32, model as it is" in said
    assert "nothing is compiled for toy on cpu" in said
    assert "skipped  telemetry" in said
    assert said.splitlines()[-1] == "verdict: ready for make run GPU=smoke"


def test_a_failing_item_is_a_verdict_and_the_others_run(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no kernel\nfor this device")

    for name in ("engine_sampler", "enumeration_line", "Telemetry"):
        monkeypatch.setattr(gpu_check, name, broken)
    found = {verdict.item: verdict for verdict in gpu_check.check_machine(SMOKE)}
    assert found["sampled exactness"].outcome == "fail"
    assert found["sampled exactness"].detail == "RuntimeError: no kernel for this device"
    assert found["greedy exactness"].outcome == "pass"


def test_greedy_output_that_differs_is_named(monkeypatch):
    found = pd.DataFrame({"rows": [2], "equal_rows": [1]}), pd.DataFrame({"position": [7]})
    monkeypatch.setattr(gpu_check, "greedy_agreement", lambda *arguments, **options: found)
    with pytest.raises(AssertionError, match="toy: greedy output differs from token 7 on"):
        gpu_check._greedy(SMOKE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_study_on_a_machine_without_one_fails_by_name():
    verdict = next(gpu_check.check_machine(load_params("h100")))
    assert (verdict.item, verdict.outcome) == ("device", "fail")
    assert "no CUDA device" in verdict.detail


def test_sane_telemetry_is_summed_up():
    assert gpu_check.judge_telemetry(FACTS, COLUMNS, 80 * 2**30).startswith("driver 570.00.01, 300 J in 1.5 s")


@pytest.mark.parametrize(
    ("facts", "columns", "message"),
    [
        ({"power_limit_watts": None}, {}, "null without reason: power_limit_watts"),
        ({"memory_bytes": 40 * 2**30}, {}, "see different memory"),
        ({"sm_clock_mhz": 2000}, {}, "above its maximum"),
        ({}, {"energy_joules_per_token": 0.0}, "the energy counter stands still"),
        ({}, {"throttled": None}, "null without reason: throttled"),
        ({}, {"foreign_processes": 2}, "2 other process"),
        ({}, {"throttled": True, "throttle_reasons": "hardware thermal"}, "throttled: hardware thermal"),
    ],
)
def test_readings_that_make_no_sense_fail(facts, columns, message):
    with pytest.raises(AssertionError, match=message):
        gpu_check.judge_telemetry(FACTS | facts, COLUMNS | columns, 80 * 2**30)


def test_a_device_that_tells_nothing_gives_a_reason_for_each_reading(monkeypatch):
    """Under the names that NVML's readings have; else what a virtual machine cannot read would fail the check."""

    def refuse(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name in [name for name in dir(pynvml) if name.startswith(("nvmlDeviceGet", "nvmlSystemGet"))]:
        monkeypatch.setattr(pynvml, name, refuse)
    facts = Device(handle=None, gpu=None, is_part=False).facts()
    assert [facts[name] for name in gpu_check.READINGS] == [None] * 4
    assert gpu_check.judge_telemetry(facts, COLUMNS, 80 * 2**30).startswith("driver None")


def test_a_reading_that_is_missing_with_its_reason_passes():
    facts = FACTS | {"power_limit_watts": None, "missing": {"power limit": "Not Supported"}}
    columns = COLUMNS | {"energy_joules_per_token": None, "telemetry_note": "energy: Not Supported"}
    assert "no energy counter" in gpu_check.judge_telemetry(facts, columns, 80 * 2**30)
