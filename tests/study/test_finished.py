"""A finished run folder is data: it is read anywhere, without weights, device or compiler."""

import json
import shutil
import subprocess
import sys

import pytest
from toy_sweep import toy_params

from specdec_lib.report.transcript import read_transcripts
from specdec_lib.study import sweep
from specdec_lib.study.run_folder import read_environment
from specdec_lib.study.sweep import is_finished, run_sweep, run_sweep_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run_sweep_here(toy_params(), folder)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """The run folder somewhere else."""
    return shutil.copytree(folder, tmp_path / "elsewhere")


def note(folder, **facts):
    """Change what the run notes of itself."""
    known = read_environment(folder)
    (folder / "environment.json").write_text(json.dumps(known | facts))


def test_a_finished_run_is_read_by_a_process_that_loads_no_pytorch(copied):
    """Without the cells that the table was made of."""
    shutil.rmtree(copied / "cells")
    script = f"""
import json, pathlib, sys
from specdec_lib.config import StudyParams
from specdec_lib.study.sweep import run_sweep
params = StudyParams.model_validate_json({toy_params().model_dump_json()!r})
rows = run_sweep(params, pathlib.Path({str(copied)!r}))
print(len(rows), "torch" in sys.modules, "transformers" in sys.modules)
"""
    said = subprocess.check_output([sys.executable, "-c", script], text=True).splitlines()
    assert "is read, and nothing is measured" in said[0]
    assert said[-1] == f"{12 * toy_params().repetitions} False False"


def test_it_is_read_though_another_device_is_here(copied):
    note(copied, device_name="NVIDIA H100")
    assert len(run_sweep(toy_params(), copied)) == 12 * toy_params().repetitions


@pytest.mark.parametrize(
    ("facts", "finished"),
    [
        ({}, True),
        ({"ended": None}, False),  # killed
        ({"complete": False}, False),  # a failed cell may be tried again here
        ({"complete": False, "device_name": "another"}, True),  # and cannot be here
    ],
)
def test_what_counts_as_finished(copied, facts, finished):
    note(copied, **facts)
    assert is_finished(toy_params(), copied) == finished


def test_other_params_and_a_missing_table_are_not_finished(copied):
    assert not is_finished(toy_params().model_copy(update={"seed": 7}), copied)
    (copied / "results.parquet").unlink()
    assert not is_finished(toy_params(), copied)


def test_a_run_of_an_earlier_version_did_not_note_whether_it_was_complete(copied):
    facts = read_environment(copied)
    del facts["complete"]
    (copied / "environment.json").write_text(json.dumps(facts))
    assert is_finished(toy_params(), copied)


def test_a_new_run_in_a_finished_folder_is_unfinished_until_its_table_is_written(copied, monkeypatch):
    def interrupted(params, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "gather", interrupted)
    longer = toy_params().model_copy(update={"repetitions": 1})
    with pytest.raises(KeyboardInterrupt):
        run_sweep_here(longer, copied)
    assert not is_finished(longer, copied)


def test_transcripts_are_read_back_with_kinds_probabilities_and_times(folder):
    (shown,) = read_transcripts(folder)
    tokens = [token for step in shown.steps for token in step if token.kind != "rejected"]
    assert len(tokens) == sum(shown.emitted) == len(shown.baseline_seconds)
    assert len(shown.seconds) == len(shown.emitted) == len(shown.steps)
    assert {token.kind for token in tokens} <= {"accepted", "resampled", "bonus", "own"}
    assert all(0 <= token.draft_prob <= 1 for token in tokens if token.kind == "accepted")


def test_a_run_without_transcripts_has_none(tmp_path):
    assert read_transcripts(tmp_path) == []


def test_the_first_blocks_give_a_table_that_is_not_finished_and_the_sweep_goes_on(tmp_path, capsys):
    params = toy_params().model_copy(update={"num_prompts": 4, "num_axis_prompts": 2, "temperatures": [0.0]})
    rows = sweep.run_first_blocks(params, tmp_path)
    assert set(rows["prompt_group"]) == {2, 3}
    assert not sweep.is_finished(params, tmp_path)
    assert sweep.run_first_blocks(params, tmp_path) is None, "a study that has begun"
    capsys.readouterr()
    assert set(sweep.run_sweep(params, tmp_path)["prompt_group"]) == {0, 1, 2, 3}
    assert "6 are finished, 6 to run" in capsys.readouterr().out
    assert sweep.is_finished(params, tmp_path)
