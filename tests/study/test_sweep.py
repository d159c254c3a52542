"""The sweep on toys: which cells there are, what a row holds, and what survives."""

import json

import pytest
import torch
from toy_sweep import run_interrupted

from specdec_lib.analysis.metrics import speedups
from specdec_lib.decoding.proposers.ngram import NgramDrafting
from specdec_lib.machine import telemetry
from specdec_lib.models.pair import load_pair
from specdec_lib.params_files import load_params
from specdec_lib.study import sweep
from specdec_lib.study.run_folder import read_cell
from specdec_lib.study.runner import BlockRunner


@pytest.fixture(scope="module")
def params():
    small = {"num_draft_tokens": [1, 4], "batch_sizes": [1, 2], "repetitions": 2, "max_new_tokens": [8]}
    return load_params("smoke").model_copy(update=small)


@pytest.fixture(scope="module")
def rows(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return sweep.run_sweep_here(params, folder)


def test_every_row_is_measured_and_has_a_place_of_its_own(rows):
    assert (rows["status"] == "ok").all()
    assert (rows["evidence"] == "measured").all()
    assert not rows.duplicated(["cell_id", "repetition"]).any()


def test_repetitions_of_a_block_begin_one_after_another(rows):
    began = rows.groupby(["temperature", "batch_size", "prompt_tokens", "prompt_group", "repetition"], dropna=False)
    times = began["started_at"].agg(["min", "max"]).unstack("repetition")
    assert rows["started_at"].is_unique
    assert (times["max", 0] < times["min", 1]).all()


def test_baseline_rows_have_nulls_where_nothing_was_drafted(rows):
    baseline = rows[rows["method"] == "autoregressive"]
    assert baseline[["num_draft_tokens", "draft_id", "acceptance_rate", "steps", "verification"]].isna().all().all()
    assert (baseline["new_tokens"] == 8 * baseline["batch_size"]).all()


def test_rates_follow_from_the_counters(rows):
    drafted = rows[rows["tested_tokens"] > 0]
    assert [sum(counts) for counts in drafted["accepted_by_position"]] == drafted["accepted_tokens"].tolist()
    assert [sum(counts) for counts in drafted["tested_by_position"]] == drafted["tested_tokens"].tolist()
    assert (rows["tpot_ms"] > 0).all()
    assert (drafted["new_tokens"] == drafted["batch_size"] + drafted["steps"] + drafted["accepted_tokens"]).all()


def test_a_second_run_keeps_what_is_finished(params, tmp_path, capsys):
    first = sweep.run_sweep_here(params, tmp_path)
    capsys.readouterr()
    second = sweep.run_sweep_here(params, tmp_path)
    assert f"{first['cell_id'].nunique()} are finished, 0 to run" in capsys.readouterr().out
    assert second.equals(first)


def test_a_failing_cell_leaves_a_failed_row_and_the_sweep_goes_on(params, tmp_path, monkeypatch, capsys):
    def fail(self, *args):
        raise torch.OutOfMemoryError("no memory for this\nand a second line")

    with monkeypatch.context() as patched:
        patched.setattr(NgramDrafting, "propose", fail)
        rows = sweep.run_sweep_here(params, tmp_path)
    failed = rows[rows["status"] == "failed"]
    assert (failed["method"] == "ngram").all()
    assert len(failed) > 0
    assert (failed["error"] == "OutOfMemoryError: no memory for this").all()
    assert failed["tpot_ms"].isna().all()
    assert (rows[rows["method"] == "draft"]["status"] == "ok").all()
    assert "failed: specdec_lib ngram" in capsys.readouterr().out
    again = sweep.run_sweep_here(params, tmp_path)  # failed cells are tried again, beside a baseline of the same run
    assert (again["status"] == "ok").all()
    assert f"{failed['cell_id'].nunique()} to run" in capsys.readouterr().out
    assert set(again.loc[again["method"] == "draft", "run_id"]) == set(rows["run_id"])
    lines = speedups(again)
    assert lines.loc[lines["method"] == "ngram", "speedup"].notna().all()
    both = again[again["method"] == "autoregressive"].groupby("cell_id")["run_id"].nunique()
    assert (both == 2).all()


def test_a_killed_run_leaves_only_whole_cells(params, tmp_path, monkeypatch):
    run_interrupted(lambda: sweep.run_sweep_here(params, tmp_path), cells=5)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 5
    rows = sweep.run_sweep_here(params, tmp_path)
    assert rows.groupby(["cell_id", "run_id"])["repetition"].count().eq(params.repetitions).all()


def order_of_settings(params, folder, monkeypatch):
    """Temperature and batch size of each block as it runs."""
    order = []
    monkeypatch.setattr(BlockRunner, "_run_block", lambda self, this, cells, skip: order.append(this.setting))
    BlockRunner(params, folder, load_pair("toy")).run()
    return [(setting.temperature, setting.batch_size) for setting in order]


def test_the_blocks_of_every_setting_are_spread_over_the_sweep(params, tmp_path, monkeypatch):
    """So that a slow spell of the machine is no property of a setting. There are four settings, of two blocks each."""
    four = [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert order_of_settings(params, tmp_path, monkeypatch) == 2 * four


def test_where_steps_are_captured_the_blocks_of_a_setting_follow_one_another(params, tmp_path, monkeypatch, recorder):
    """Another batch size would throw away what was captured."""
    order = order_of_settings(params, tmp_path, monkeypatch)
    assert order == [(t, batch) for batch in (1, 2) for t in (0, 1) for _ in range(2)]


def test_where_steps_are_captured_the_memory_of_a_cell_is_its_own(params, tmp_path, monkeypatch, recorder):
    """A block keeps what all its cells captured: a peak in its repetitions would be of them together.

    Here the number of captured steps stands for bytes.
    """
    pair, counted = load_pair("toy"), []

    def count(device):
        counted.append(len(pair.target.kept.steps))
        return dict.fromkeys(telemetry.MEMORY, counted[-1])

    monkeypatch.setattr(telemetry, "memory_columns", count)
    runner = BlockRunner(params, tmp_path, pair)
    runner.run([0])
    rows = [row for cell in runner.blocks[0].cells for row in read_cell(tmp_path, cell.id)]
    assert len(rows) == params.repetitions * len(runner.blocks[0].cells) == 10
    assert all(row["replayed"] and row["status"] == "ok" for row in rows)
    assert {row[name] for row in rows for name in telemetry.MEMORY} == {1}
    assert counted[:5] == [1] * 5, "each cell alone, before the first repetition"
    assert max(counted) == 5, "all of them together in the last"


def test_a_cell_that_fails_while_its_memory_is_measured_is_a_failed_cell(params, tmp_path, monkeypatch, recorder):
    def fail(self, *args):
        raise torch.OutOfMemoryError("no memory for this")

    monkeypatch.setattr(NgramDrafting, "propose", fail)
    runner = BlockRunner(params, tmp_path, load_pair("toy"))
    runner.run([0])
    found = {cell.method: read_cell(tmp_path, cell.id) for cell in runner.blocks[0].cells}
    assert [row["error"] for row in found["ngram"]] == ["OutOfMemoryError: no memory for this"]
    assert [row["status"] for row in found["draft"]] == ["ok"] * params.repetitions


def test_the_environment_is_written(params, tmp_path):
    sweep.run_sweep_here(params, tmp_path)
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert facts["params"]["pair"] == "toy"
    assert {"device_name", "versions", "commit", "started", "ended", "target_id"} <= facts.keys()
    sweep.run_sweep_here(params, tmp_path)
    assert len(json.loads((tmp_path / "environment.json").read_text())["runs"]) == 2


def test_a_study_for_another_device_is_refused_before_loading(params, tmp_path):
    study = params.model_copy(update={"device_name": "H100", "gpu": "h100"})
    with pytest.raises(ValueError, match="'H100', but this machine has"):
        sweep.run_sweep_here(study, tmp_path)
    assert not list(tmp_path.iterdir())
