"""A block whose baseline ends at another speed than it began is flagged, shown, and kept out of every line."""

import pytest
from synthetic_rows import synthetic_rows
from toy_sweep import toy_params

from specdec_lib.analysis import metrics
from specdec_lib.models.pair import load_pair
from specdec_lib.report.tables import sweep as tables
from specdec_lib.study import runner
from specdec_lib.study.rows.drift import LIMIT, mark_drift, unsteady
from specdec_lib.study.run_folder import read_cell


def call(method, repetition, tpot_ms, group=0, run="r", **changes):
    row = {"run_id": run, "engine": "specdec_lib", "method": method, "repetition": repetition, "status": "ok"}
    row |= {"temperature": 0.0, "batch_size": 1, "prompt_tokens": None, "max_new_tokens": 48, "prompt_group": group}
    return row | {"tpot_ms": tpot_ms, "step_ms": [tpot_ms] * 47 if tpot_ms else []} | changes


def block(*baseline_ms, **changes):
    """A baseline with these times, and a draft."""
    rows = [call("autoregressive", i, tpot, **changes) for i, tpot in enumerate(baseline_ms)]
    return rows + [call("draft", i, 5.0, **changes) for i in range(len(baseline_ms))]


@pytest.mark.parametrize(
    ("baseline_ms", "drifted"),
    [
        ([10, 10.5, 9.8], False),
        ([10, 30, 10], False),  # a single slow repetition between equal ends: the median deals with it
        ([10, 11, 10 * (1 + LIMIT) * 1.01], True),
        ([10 * (1 + LIMIT) * 1.01, 11, 10], True),  # faster is drift too
        ([10], None),
        ([0.1, 0.1, 0.5], None),  # 5 ms in all: the scheduler's
        ([10, 10, None], None),  # a single token has no TPOT
    ],
)
def test_the_first_baseline_repetition_against_the_last(baseline_ms, drifted):
    rows = block(*baseline_ms)
    mark_drift(rows)
    assert {row["drifted"] for row in rows} == {drifted}


def test_a_block_is_judged_by_its_own_baseline_of_its_own_run():
    steady, drifting, later = block(10, 10, 10), block(10, 10, 15, group=1), block(15, 15, 15, run="later")
    failed = call("draft", 0, None, group=1, status="failed")
    mark_drift(steady + drifting + later + [failed])
    flags = [{row["drifted"] for row in rows} for rows in (steady, drifting, later)]
    assert flags == [{False}, {True}, {False}]
    assert "drifted" not in failed


@pytest.mark.parametrize(
    ("baseline_ms", "changes", "expected"),
    [
        ([10, 10, 15], {}, True),
        ([10, 10, 10], {}, False),
        ([10], {}, False),  # that cannot be said
        ([10, 10, 10], {"throttled": True}, True),
        ([10, 10, 10], {"foreign_processes": 1}, True),
        ([10, 10, 10], {"throttled": False, "foreign_processes": 0}, False),
    ],
)
def test_a_block_is_unsteady_if_its_baseline_drifted_or_the_device_was_shared_or_throttled(
    baseline_ms, changes, expected
):
    assert unsteady(block(*baseline_ms, **changes)) == expected


def test_failed_rows_say_nothing_about_the_machine():
    assert not unsteady([*block(10, 10), call("draft", 1, None, status="failed")])


def measure_a_block(folder, monkeypatch, verdicts):
    """Run one block of toys, which is found unsteady or not as `verdicts` say; returns its runner and its rows."""
    verdicts = iter(verdicts)
    monkeypatch.setattr(runner, "unsteady", lambda rows: next(verdicts))
    blocks = runner.BlockRunner(toy_params(), folder, load_pair("toy"))
    blocks.run([0])
    assert not [*verdicts], "asked once for each measurement, but never for more than the first"
    return [read_cell(folder, cell.id) for cell in blocks.blocks[0].cells]


def test_an_unsteady_block_is_measured_once_more_and_what_comes_out_stays(tmp_path, monkeypatch, capsys):
    found = measure_a_block(tmp_path, monkeypatch, [True])
    assert "measured once more" in capsys.readouterr().out
    assert [len(rows) for rows in found] == [toy_params().repetitions] * 3
    again = runner.BlockRunner(toy_params(), tmp_path, load_pair("toy"))
    assert not again.blocks[0].missing(tmp_path), "no later run measures it again"


def test_a_steady_block_is_measured_once(tmp_path, monkeypatch, capsys):
    measure_a_block(tmp_path, monkeypatch, [False])
    assert "once more" not in capsys.readouterr().out


def test_drifted_rows_are_kept_out_of_lines_and_listed_once_a_block():
    rows = synthetic_rows()
    one_block = (rows["batch_size"] == 1) & (rows["prompt_group"] == 0) & (rows["temperature"] == 0)
    one_block &= rows["prompt_tokens"].isna() & (rows["max_new_tokens"] == 48)
    rows.loc[one_block, "drifted"] = True
    rows.loc[one_block & (rows["method"] == "autoregressive"), "tpot_ms"] *= 10
    assert metrics.speedups(rows)["speedup"].max() < 5  # a slow baseline would have made it ten times as large
    (line,) = tables.trouble_table(rows).itertuples()
    assert (line.what, line.repetition) == ("drifted", "2")
    assert line.reason == "the baseline's TPOT changed by over 20% in this block"
