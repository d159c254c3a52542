"""The first minute on a machine: a verdict for every item, whatever goes wrong with one of them."""

import pandas as pd
import pytest
import torch

from specdec_lib import __main__ as cli
from specdec_lib.cli import gpu_check
from specdec_lib.exactness import certify
from specdec_lib.kernels.gpu import ops as gpu_kernels
from specdec_lib.params_files import load_params

SMOKE = load_params("smoke")
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
    assert "tests of sampled output, 8 greedy rows" in said
    assert "pass     short sweep in float32" in said
    assert "skipped  telemetry" in said
    assert "skipped  kernels" in said
    assert said.splitlines()[-1] == "verdict: ready for make run GPU=smoke"


def test_a_failing_item_is_a_verdict_and_the_others_run(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setattr(gpu_check, "enumeration_table", broken)
    found = {verdict.item: verdict for verdict in gpu_check.check_machine(SMOKE)}
    assert found["exactness"].outcome == "fail"
    assert found["exactness"].detail == "RuntimeError: no kernel for this device"
    assert found["short sweep in float32"].outcome == "pass"


def test_kernels_that_compute_otherwise_are_named_and_ones_that_cannot_run_are_skipped(monkeypatch):
    monkeypatch.setattr(gpu_check, "differences", lambda *_: ["next tokens where numbers are 0: 3 of 8 differ"])
    monkeypatch.setattr(gpu_kernels, "why_not_on_gpu", lambda: None)
    with pytest.raises(AssertionError, match="differ from plain PyTorch in 1 ways: next tokens where numbers are 0"):
        gpu_check._kernels(load_params("h100"))
    monkeypatch.setattr(gpu_kernels, "why_not_on_gpu", lambda: "no C compiler")
    with pytest.raises(gpu_check.Skipped, match="no C compiler"):
        gpu_check._kernels(load_params("h100"))


def test_output_of_another_law_is_named(monkeypatch):
    greedy = pd.DataFrame([{"method": "draft", "num_draft_tokens": 4, "dtype": "float32", "rows": 4, "equal_rows": 3}])
    tests = pd.DataFrame([{"sampler": "toy", "position": 1, "rejected": True}])
    paths = pd.DataFrame(columns=["paths"])
    monkeypatch.setattr(gpu_check, "enumeration_table", lambda *_: paths)
    monkeypatch.setattr(certify, "joint_law", lambda *_: (tests, pd.DataFrame()))
    monkeypatch.setattr(certify, "greedy", lambda *_: (greedy, pd.DataFrame()))
    with pytest.raises(AssertionError, match="joint law: toy at position 1 is biased; greedy: draft, gamma 4 differs"):
        gpu_check._exactness(SMOKE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_study_on_a_machine_without_one_fails_by_name():
    verdict = next(gpu_check.check_machine(load_params("h100")))
    assert (verdict.item, verdict.outcome) == ("device", "fail")
    assert "no CUDA device" in verdict.detail


def test_sane_telemetry_is_summed_up():
    assert gpu_check.judge_telemetry(COLUMNS) == "300 J in 1.5 s; nothing missing"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"energy_joules_per_token": 0.0}, "the energy counter stands still"),
        ({"throttled": None}, "null without reason: throttled"),
        ({"foreign_processes": 2}, "2 other process"),
        ({"throttled": True, "throttle_reasons": "hardware thermal"}, "throttled: hardware thermal"),
    ],
)
def test_readings_that_make_no_sense_fail(columns, message):
    with pytest.raises(AssertionError, match=message):
        gpu_check.judge_telemetry(COLUMNS | columns)


def test_a_reading_that_is_missing_with_its_reason_passes():
    columns = COLUMNS | {"energy_joules_per_token": None, "telemetry_note": "energy: Not Supported"}
    assert gpu_check.judge_telemetry(columns) == "no energy counter; energy: Not Supported"
