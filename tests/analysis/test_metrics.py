"""From rows to lines, on a synthetic table whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import ACCEPTANCE, DRAFT_MS, TARGET_MS, VERIFY_MS, study, synthetic_rows

from specdec_lib.analysis import metrics
from specdec_lib.analysis.headline import along, at_headline, headline, headline_over_transformers
from specdec_lib.report.tables import sweep as tables
from specdec_lib.study.rows.table import SCHEMA

PARAMS = study()
ROWS = synthetic_rows(PARAMS)
SMALL = {"num_draft_tokens": [4], "batch_sizes": [1, 2], "prompt_tokens": [0], "max_new_tokens": [48]}
FEW = synthetic_rows(study(**SMALL))  # where the number of lines does not matter


@pytest.fixture(scope="module")
def lines():
    return metrics.speedups(ROWS)


@pytest.fixture(scope="module")
def headline_lines():
    return headline(ROWS, PARAMS)


def one(table, **where):
    for name, value in where.items():
        table = table[table[name].isna() if value is None else (table[name] == value).fillna(False)]
    assert len(table) == 1, table
    return table.iloc[0]


def test_speedup_is_the_one_built_into_the_table(headline_lines):
    """The synthetic machine: a step costs target + gamma (draft + verify); tokens per step come from the counters."""
    line = one(headline_lines, method="draft", temperature=0.0)
    expected = TARGET_MS * line.mean_acceptance_length / (TARGET_MS + 4 * (DRAFT_MS + VERIFY_MS))
    assert line.speedup == pytest.approx(expected, rel=0.04)
    assert line.speedup_low < line.speedup < line.speedup_high
    assert line.num_prompts == PARAMS.num_prompts


def test_the_baseline_against_itself_is_one_without_interval(headline_lines):
    line = one(headline_lines, method="autoregressive", temperature=0.0)
    assert line.speedup == 1
    assert np.isnan(line.speedup_low)
    assert np.isnan(line.acceptance_rate)
    assert np.isnan(line.mean_acceptance_length)


def test_slower_is_a_line_like_any_other(headline_lines):
    assert one(headline_lines, method="ngram", temperature=1.0).speedup < 1


def test_one_slow_repetition_moves_a_speedup_little(headline_lines):
    """Median over repetitions first: of three, one may be ten times slower; a mean would fall below a half."""
    rows = ROWS.copy()
    disturbed = (rows["method"] == "draft") & (rows["repetition"] == 1)
    rows.loc[disturbed, "tpot_ms"] = rows.loc[disturbed, "tpot_ms"] * 10
    before = headline_lines
    after = headline(rows, PARAMS)
    assert (after["speedup"] / before["speedup"]).between(0.75, 1.0).all()


def test_ratios_are_paired_by_prompt_and_not_means_of_rates():
    """One prompt group twice as slow for everyone changes no ratio."""
    rows = FEW.copy()
    rows.loc[rows["prompt_group"] == 0, "tpot_ms"] *= 2
    assert np.allclose(metrics.speedups(rows)["speedup"], metrics.speedups(FEW)["speedup"])


def test_tpot_divides_to_the_speedup():
    """With one repetition nothing is paired, and both are geometric means over the same prompt groups."""
    rows = synthetic_rows(study(**SMALL, repetitions=1))
    rows["tpot_ms"] *= 1.3 ** rows["prompt_group"]  # prompts that differ
    lines = metrics.speedups(rows)
    for _, setting in lines[lines["engine"] == metrics.OWN_ENGINE].groupby(metrics.SETTING, dropna=False):
        baseline = one(setting, method="autoregressive")["tpot_ms"]
        assert np.allclose(baseline / setting["tpot_ms"], setting["speedup"])


def test_rates_are_pooled_from_counters(headline_lines):
    line = one(headline_lines, method="draft", temperature=1.0)
    assert line.acceptance_rate == line.accepted_tokens / line.tested_tokens
    assert line.draft_efficiency == line.accepted_tokens / line.drafted_tokens
    assert line.mean_acceptance_length == 1 + line.accepted_tokens / line.steps


def test_lines_cover_the_whole_sweep(lines):
    axes = {axis: set(along(lines, PARAMS, axis)[axis].dropna()) for axis in ("num_draft_tokens", "batch_size")}
    assert axes == {"num_draft_tokens": {1, 2, 4, 6}, "batch_size": {1, 2, 4}}
    assert along(lines, PARAMS, "prompt_tokens")["prompt_tokens"].isna().any()
    assert set(along(lines, PARAMS, "max_new_tokens")["max_new_tokens"]) == {48, 96}


def test_the_headline_is_fixed_by_the_params(lines, headline_lines):
    assert set(headline_lines["engine"]) == {"specdec_lib"}
    assert set(headline_lines["num_draft_tokens"].dropna()) == {PARAMS.headline_num_draft_tokens}
    assert len(headline_lines) == 3 * len(PARAMS.temperatures)
    pd.testing.assert_frame_equal(headline_lines, at_headline(lines, PARAMS))


def test_over_transformers_compares_our_baseline_and_our_methods():
    lines = headline_over_transformers(ROWS, PARAMS)
    baseline = one(lines, engine="specdec_lib", method="autoregressive", temperature=0.0)
    assert baseline.speedup == pytest.approx(1.25, rel=0.05)  # the synthetic transformers is a quarter slower
    best = lines[(lines["method"] == "draft") & (lines["temperature"] == 0)]["speedup"].max()
    assert best > baseline.speedup
    without = headline_over_transformers(ROWS[ROWS["engine"] == "specdec_lib"], PARAMS)
    assert without.empty


def test_acceptance_by_position_is_conditional():
    """The synthetic acceptance is the same at every position; about 1,000 tests each, 6 standard errors allowed."""
    lines = metrics.acceptance_by_position(at_headline(ROWS, PARAMS))
    for line in lines[(lines["method"] == "draft")].itertuples():
        expected = ACCEPTANCE["draft", line.temperature]
        slack = 6 * np.sqrt(expected * (1 - expected) / line.tested) + 0.02
        assert line.acceptance_rate == pytest.approx(expected, abs=slack)


def test_failed_rows_enter_no_number():
    rows = FEW.copy()
    failed = (rows["method"] == "draft") & (rows["batch_size"] == 2)
    rows.loc[failed, ["status", "error"]] = ["failed", "OutOfMemoryError: 20 GiB"]
    lines = metrics.speedups(rows)
    assert lines[(lines["method"] == "draft") & (lines["batch_size"] == 2)].empty


def test_a_failed_baseline_leaves_no_made_up_speedup():
    rows = FEW.copy()
    rows.loc[(rows["method"] == "autoregressive") & (rows["batch_size"] == 2), "status"] = "failed"
    lines = metrics.speedups(rows)
    unpaired = lines[(lines["batch_size"] == 2) & (lines["method"] == "draft")]
    assert unpaired["speedup"].isna().all()
    assert (unpaired["num_prompts"] == 0).all()
    assert unpaired["tpot_ms"].notna().all()


def test_two_baselines_for_one_setting_are_refused():
    with pytest.raises(ValueError, match="baseline rows repeat"):
        metrics.speedups(pd.concat([ROWS, ROWS[ROWS["method"] == "autoregressive"]]))


def test_an_empty_table_gives_empty_lines(lines):
    empty = ROWS.iloc[:0]
    assert list(ROWS.columns) == SCHEMA.names
    assert metrics.speedups(empty).columns.tolist() == lines.columns.tolist()
    assert metrics.speedups(empty).empty
    assert metrics.acceptance_by_position(empty).empty


def test_an_output_that_is_repeated_is_counted_once():
    rows = FEW.copy()
    greedy = rows["temperature"] == 0
    outputs = "output of prompt " + rows["prompt_group"].astype(str)
    rows["tokens_sha256"] = outputs  # where tokens are drawn, the same ones may come of other drafts
    first = rows[~greedy | (rows["repetition"] == 0)]
    for of_all, of_first in (
        (metrics.acceptance_by_position(rows), metrics.acceptance_by_position(first)),
        (metrics.speedups(rows)[metrics.COUNTERS], metrics.speedups(first)[metrics.COUNTERS]),
    ):
        pd.testing.assert_frame_equal(of_all, of_first)


def test_energy_is_known_only_where_every_call_was_long_enough_to_tell():
    """Else the longest calls would speak for all."""
    rows = FEW.copy()
    rows["energy_joules_per_token"] = 2.0
    assert (metrics.speedups(rows)["energy_joules_per_token"] == 2).all()
    rows.loc[rows["prompt_group"] == 0, "energy_joules_per_token"] = None
    assert metrics.speedups(rows)["energy_joules_per_token"].isna().all()


def test_throttled_and_shared_rows_are_kept_out_of_lines_and_listed():
    rows = FEW.copy()
    baseline = (rows["method"] == "autoregressive") & (rows["repetition"] == 0) & (rows["engine"] == "specdec_lib")
    rows.loc[baseline, ["throttled", "throttle_reasons"]] = [True, "power cap"]
    rows.loc[baseline, "tpot_ms"] *= 10
    shared = (rows["method"] == "ngram") & (rows["repetition"] == 1)
    rows.loc[shared, "foreign_processes"] = 2
    listed = tables.trouble_table(rows)
    assert set(listed["reason"]) == {
        "the device lowered its clock (power cap)", "2 other process(es) used the device"
    }  # fmt: skip
    assert len(listed) == baseline.sum() + shared.sum()
    clean = metrics.speedups(rows)
    assert clean["speedup"].max() < 5  # a throttled baseline would have made it ten times as large
