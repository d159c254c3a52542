"""The sweep on toys: which cells there are, what a row holds, and what survives."""

import json
from dataclasses import replace

import pytest
import torch
from toy_sweep import run_interrupted

from specdec_lib.analysis.metrics import speedups
from specdec_lib.config import load_params
from specdec_lib.decoding.proposers import NgramProposer
from specdec_lib.machine import telemetry
from specdec_lib.models.pair import load_pair
from specdec_lib.study import sweep
from specdec_lib.study.blocks import BlockRunner
from specdec_lib.study.cell_files import read_cell
from specdec_lib.study.cells import Source, block, prompt_groups, settings
from specdec_lib.study.table import read_results
from specdec_lib.study.timing import latency_columns

SOURCE = Source("smoke", "this", "toy", "toy-target", "toy-draft", "0", "torch", "float32", 2, "mixed", "0")

CONTRACT = [
    "run_id",
    "cell_id",
    "benchmark_version",
    "status",
    "error",
    "evidence",
    "gpu",
    "device_name",
    "engine",
    "pair",
    "target_id",
    "draft_id",
    "method",
    "verification",
    "num_draft_tokens",
    "temperature",
    "top_k",
    "top_p",
    "dtype",
    "compiled",
    "batch_size",
    "prompt_tokens",
    "max_new_tokens",
    "prompt_set",
    "repetition",
    "seed",
    "new_tokens",
    "steps",
    "drafted_tokens",
    "tested_tokens",
    "accepted_tokens",
    "accepted_by_position",
    "acceptance_rate",
    "draft_efficiency",
    "mean_acceptance_length",
    "ttft_ms",
    "tpot_ms",
    "itl_p50_ms",
    "itl_p90_ms",
    "itl_p99_ms",
    "tokens_per_second",
    "peak_memory_allocated_bytes",
    "peak_memory_reserved_bytes",
    "device_memory_used_bytes",
    "process_peak_rss_bytes",
    "gpu_utilization_percent",
    "energy_joules_per_token",
    "throttled",
    "cost_usd_per_million_tokens",
]


@pytest.fixture(scope="module")
def params():
    small = {"num_draft_tokens": [1, 4], "batch_sizes": [1, 2], "repetitions": 2, "max_new_tokens": [8]}
    return load_params("smoke").model_copy(update=small)


@pytest.fixture(scope="module")
def rows(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return sweep.run_sweep_here(params, folder)


def test_one_at_a_time_varies_one_axis_from_the_base(params):
    study = params.model_copy(update={"batch_sizes": [1, 2], "prompt_tokens": [0, 32], "max_new_tokens": [8, 16]})
    points = [(s.batch_size, s.prompt_tokens, s.max_new_tokens) for s in settings(study) if s.temperature == 0]
    assert points == [(1, None, 8), (2, None, 8), (1, 32, 8), (1, None, 16)]
    assert [s.num_draft_tokens for s in settings(study) if s.temperature == 0] == [(1, 4), (4,), (4,), (4,)]


def test_factorial_crosses_all_axes(params):
    study = params.model_copy(update={"design": "factorial", "prompt_tokens": [0, 32], "max_new_tokens": [8, 16]})
    assert len(settings(study)) == 2 * 2 * 2 * len(study.temperatures)


def test_a_batch_takes_its_own_prompts(params):
    study = params.model_copy(update={"num_prompts": 4})
    by_batch = {s.batch_size: prompt_groups(study, s) for s in settings(study)}
    assert by_batch[1] == [[0], [1], [2], [3]]
    assert by_batch[2] == [[0, 1], [2, 3]]  # not the headline setting: half as many prompts, but two groups


def test_the_cell_id_depends_on_everything_that_determines_the_cell(params):
    setting = settings(params)[0]
    cells = block(params, SOURCE, setting, 0) + block(params, SOURCE, setting, 1)
    cells += block(params.model_copy(update={"seed": 7}), SOURCE, setting, 0)
    cells += block(params, replace(SOURCE, weights="1"), setting, 0)
    assert len({cell.id for cell in cells}) == len(cells)
    assert cells[0].id == block(params, SOURCE, setting, 0)[0].id


def test_the_table_has_the_columns_of_the_contract_and_every_row_is_measured(rows):
    """Others may stand between those of the contract."""
    assert [name for name in rows.columns if name in CONTRACT] == CONTRACT
    assert (rows["status"] == "ok").all()
    assert (rows["evidence"] == "measured").all()
    assert not rows.duplicated(["cell_id", "repetition"]).any()


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
        patched.setattr(NgramProposer, "propose", fail)
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
    """Temperature and batch size of each block as it runs, behind which is known how much is done."""
    order, shares = [], []
    monkeypatch.setattr(BlockRunner, "_run_block", lambda self, this, cells, skip: order.append(this.setting))
    BlockRunner(params, folder, load_pair("toy")).run(behind_block=shares.append)
    assert shares == sorted({*shares})
    assert (len(shares), shares[-1]) == (len(order), 1)
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

    monkeypatch.setattr(NgramProposer, "propose", fail)
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


def test_latencies_of_a_known_timeline():
    from specdec_lib.decoding.result import DecodeResult

    result = DecodeResult([torch.zeros(4, dtype=torch.int64)], ttft_s=0.1, step_s=[0.2, 0.1], step_tokens=[[2], [1]])
    columns = latency_columns(result)
    assert columns["tpot_ms"] == pytest.approx(100)  # (0.4 - 0.1) / 3
    assert columns["itl_p50_ms"] == pytest.approx(100)  # gaps 200, 0, 100
    assert columns["tokens_per_second"] == pytest.approx(10)


def test_a_single_token_has_no_tpot():
    from specdec_lib.decoding.result import DecodeResult

    columns = latency_columns(DecodeResult([torch.zeros(1)], ttft_s=0.1, step_s=[], step_tokens=[]))
    assert columns["tpot_ms"] is None
    assert columns["itl_p50_ms"] is None


def test_reading_results_before_a_run_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="make run"):
        read_results(tmp_path)
