"""How many tokens target passes emit: counts of the histogram against the steps as they came."""

from collections import Counter

import numpy as np
import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis import metrics
from specdec_lib.analysis.sweep.passes import tokens_per_pass

PARAMS = study(num_draft_tokens=[1, 4], batch_sizes=[1, 4], prompt_tokens=[0], max_new_tokens=[48], num_prompts=2)
ROWS = synthetic_rows(PARAMS)
PASSES = tokens_per_pass(ROWS)


@pytest.mark.parametrize("batch", [1, 4])  # the rows of a synthetic batch accept alike, so their mean is the count
def test_the_counts_are_those_of_the_steps(batch):
    for (method, gamma), lines in PASSES[(PASSES["temperature"] == 1) & (PASSES["batch_size"] == batch)].groupby(
        ["method", "num_draft_tokens"]
    ):
        rows = ROWS[(ROWS["method"] == method) & (ROWS["batch_size"] == batch) & (ROWS["temperature"] == 1)]
        steps = Counter(int(n) for each in rows[rows["num_draft_tokens"] == gamma]["step_tokens"] for n in each)
        assert lines["tokens"].tolist() == list(range(1, gamma + 2))
        assert lines["passes"].tolist() == [batch * steps[tokens] for tokens in lines["tokens"]]


def test_the_mean_is_the_acceptance_length_and_shares_add_up_to_one():
    keys = ["method", "num_draft_tokens", "temperature", "batch_size"]
    lines = metrics.speedups(ROWS)
    lengths = lines[lines["method"] != "autoregressive"].set_index(keys)["mean_acceptance_length"].sort_index()
    groups = [PASSES[key] for key in keys]
    assert np.allclose((PASSES["share"] * PASSES["tokens"]).groupby(groups).sum().sort_index(), lengths)
    assert np.allclose(PASSES["share"].groupby(groups).sum(), 1)


def test_an_output_that_is_repeated_is_counted_once():
    rows = ROWS[ROWS["temperature"] == 0].copy()
    rows["tokens_sha256"] = "output of prompt " + rows["prompt_group"].astype(str)
    first = tokens_per_pass(rows[rows["repetition"] == 0])
    assert tokens_per_pass(rows)["passes"].tolist() == first["passes"].tolist()


def test_rows_that_verified_nothing_or_were_given_their_acceptance_have_no_line():
    nothing = ROWS.copy()
    for name in ("steps", "accepted_by_position"):
        nothing[name] = None
    assert tokens_per_pass(nothing).empty
    assert tokens_per_pass(ROWS.assign(verification="given")).empty
    assert tokens_per_pass(ROWS.iloc[:0]).columns.tolist() == PASSES.columns.tolist()
