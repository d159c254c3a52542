"""A block whose baseline ends at another speed than it began is flagged, shown, and kept out of every line."""

from dataclasses import dataclass

import pytest
from synthetic_rows import synthetic_rows

from specdec_lib.analysis import metrics
from specdec_lib.report.tables import sweep as tables
from specdec_lib.study.blocks import Block
from specdec_lib.study.cell_files import write_cell
from specdec_lib.study.drift import LIMIT, mark_drift, steady_runs
from specdec_lib.study.repetitions import Repetitions
from specdec_lib.study.table import read_results, write_results


def call(method, repetition, tpot_ms, group=0, run="r", **changes):
    row = {"run_id": run, "engine": "specdec_lib", "method": method, "repetition": repetition, "status": "ok"}
    row |= {"temperature": 0.0, "batch_size": 1, "prompt_tokens": None, "max_new_tokens": 48, "prompt_group": group}
    return row | {"tpot_ms": tpot_ms, "step_ms": [tpot_ms] * 47 if tpot_ms else []} | changes


def block(*baseline_ms, **changes):
    """A baseline with these times and a draft beside it."""
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


@dataclass(frozen=True)
class StandIn:
    """What a block asks of a cell."""

    id: str
    repetitions: Repetitions


def missing(folder, rows):
    """The cells of a block of two that are to be measured when these rows are all that `folder` holds."""
    for method in ("autoregressive", "draft"):
        write_cell(folder, method, [row for row in rows if row["method"] == method])
    cells = [StandIn(method, Repetitions(3, 3, 1.0)) for method in ("autoregressive", "draft")]
    this = Block(setting=None, prompts=[0], cells=cells)
    return [cell.id for cell in this.missing(folder)]


def test_a_block_that_drifted_is_missing_until_it_has_been_measured_without(tmp_path):
    """The rule looks at the baseline alone, so that it favours no ratio."""
    assert missing(tmp_path, block(10, 10, 15)) == ["autoregressive", "draft"]
    assert missing(tmp_path, block(10, 10, 10, run="again")) == []
    drifting, steady = block(10, 10, 15)[:3], block(10, 10, 10, run="again")[:3]
    assert steady_runs(drifting + steady) == steady


@pytest.mark.parametrize("disturbance", [{"throttled": True}, {"foreign_processes": 1}])
@pytest.mark.parametrize(
    ("disturbed", "wanted"), [("autoregressive", ["autoregressive", "draft"]), ("draft", ["draft"])]
)
def test_a_cell_that_was_disturbed_is_missing_until_it_and_its_baseline_are_measured_without(
    tmp_path, disturbance, disturbed, wanted
):
    """Of a baseline's runs the disturbed make room, and the others stay with the cells beside them."""
    rows = block(10, 10, 10)
    of_cell = [row for row in rows if row["method"] == disturbed]
    of_cell[1] |= disturbance
    assert missing(tmp_path, rows) == wanted
    baseline = [row for row in rows if row["method"] == "autoregressive"]
    again = block(10, 10, 10, run="again")
    assert missing(tmp_path, [*steady_runs(baseline), *again]) == []
    quiet = call("autoregressive", 0, 10, run="quiet", throttled=False, foreign_processes=0)
    assert steady_runs([*of_cell, quiet]) == [quiet]


def test_the_flag_is_in_the_table(tmp_path):
    rows = [row | {"tokens_per_second": 100.0} for row in block(10, 10, 15)]
    write_cell(tmp_path, "a", rows)
    table = write_results(tmp_path, ["a"], usd_per_hour=1.0)
    assert table["drifted"].all()
    assert read_results(tmp_path)["drifted"].all()


def test_drifted_rows_are_kept_out_of_lines_and_listed_once_a_block():
    rows = synthetic_rows()
    one_block = (rows["batch_size"] == 1) & (rows["prompt_group"] == 0) & (rows["temperature"] == 0)
    one_block &= rows["prompt_tokens"].isna() & (rows["max_new_tokens"] == 48)
    rows.loc[one_block, "drifted"] = True
    rows.loc[one_block & (rows["method"] == "autoregressive"), "tpot_ms"] *= 10
    assert metrics.speedups(rows)["speedup"].max() < 5  # a slow baseline would have made it ten times as large
    (line,) = tables.trouble_table(rows).itertuples()
    assert (line.what, line.repetition) == ("drifted", 2)
    assert line.reason == "the baseline's TPOT changed by over 20% in this block"
