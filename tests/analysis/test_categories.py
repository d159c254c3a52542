"""Speedups by category: the same pairing and pooling as the headline, over fewer prompts."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis import metrics
from specdec_lib.analysis.headline import at_headline
from specdec_lib.analysis.sweep.categories import best_and_worst, category_lines, prompt_ratios

PARAMS = study(num_draft_tokens=[1, 4], batch_sizes=[1, 2], prompt_tokens=[0], max_new_tokens=[48], num_prompts=5)
KINDS = {0: "chat", 1: "chat", 2: "code", 3: "code", 4: "list"}


def rows_by_category():
    """On code, lookup takes a third of its time; a batch of 2 has several categories."""
    rows = synthetic_rows(PARAMS)
    rows["category"] = rows["prompt_group"].map(KINDS).astype("string").where(rows["batch_size"] == 1)
    rows.loc[(rows["category"] == "code").fillna(False) & (rows["method"] == "ngram"), "tpot_ms"] /= 3
    return rows


ROWS = rows_by_category()
LINES = category_lines(ROWS, PARAMS)


def test_there_is_a_line_for_each_method_category_and_temperature_at_the_headline_setting():
    assert not LINES.duplicated(["method", "category", "temperature"]).any()
    assert len(LINES) == 2 * 3 * 2
    assert set(LINES["num_draft_tokens"]) == {4}
    assert dict(zip(LINES["category"], LINES["num_prompts"], strict=True)) == {"chat": 2, "code": 2, "list": 1}
    assert LINES["speedup_low"].isna().all()  # too few prompts for an interval


@pytest.mark.parametrize("kind", ["chat", "code", "list"])
def test_a_category_has_the_speedup_and_acceptance_that_its_rows_have_alone(kind):
    groups = [group for group, its in KINDS.items() if its == kind]
    alone = metrics.speedups(at_headline(ROWS[ROWS["prompt_group"].isin(groups)], PARAMS))
    alone = alone[alone["method"] != "autoregressive"].reset_index(drop=True)
    here = LINES[LINES["category"] == kind].reset_index(drop=True)
    pd.testing.assert_frame_equal(here.drop(columns="category"), alone)


def test_batches_of_several_categories_are_left_out():
    mixed = ROWS.assign(category=ROWS["category"].where(ROWS["prompt_group"] > 1))
    assert set(category_lines(mixed, PARAMS)["category"]) == {"code", "list"}
    assert set(prompt_ratios(mixed, PARAMS)["category"]) == {"code", "list"}


def test_every_prompt_has_the_ratio_whose_geometric_mean_is_the_speedup_of_its_category():
    ratios = prompt_ratios(ROWS, PARAMS)
    assert len(ratios) == 2 * 5 * 2
    keys = ["method", "category", "temperature"]
    means = np.exp(np.log(ratios["speedup"]).groupby([ratios[key] for key in keys]).mean())
    assert np.allclose(LINES.set_index(keys)["speedup"].sort_index(), means.sort_index())


def test_the_best_method_of_each_category_decides_which_gains_most_and_least():
    ends = best_and_worst(LINES)
    assert ends["temperature"].tolist() == [0, 0, 1, 1]
    assert ends["gain"].tolist() == ["most", "least"] * 2
    most = ends[ends["gain"] == "most"]
    assert (most["category"].tolist(), most["method"].tolist()) == (["code"] * 2, ["ngram"] * 2)
    best = LINES.groupby(["temperature", "category"])["speedup"].max()
    assert ends[ends["gain"] == "least"]["speedup"].tolist() == best.groupby("temperature").min().tolist()


def test_one_category_gains_neither_most_nor_least():
    ends = best_and_worst(LINES[LINES["category"] == "list"])
    assert ends["gain"].tolist() == ["only", "only"]


@pytest.mark.parametrize("lacking", ["rows", "categories", "baseline"])
def test_what_was_not_measured_has_no_ratio(lacking):
    rows = {
        "rows": ROWS.iloc[:0],
        "categories": ROWS.assign(category=pd.Series(pd.NA, ROWS.index, dtype="string")),
        "baseline": ROWS[ROWS["method"] != "autoregressive"],
    }[lacking]
    lines = category_lines(rows, PARAMS)
    assert lines.columns.tolist() == LINES.columns.tolist()
    assert lines["speedup"].isna().all()
    assert len(lines) == (12 if lacking == "baseline" else 0)
    assert prompt_ratios(rows, PARAMS).empty
    assert best_and_worst(lines).empty
