"""The advisor: it finds the best setting from a profile alone, is off where that loses, and knows what it lost."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import DRAFT_MS, TARGET_MS, VERIFY_MS, step_costs, study, synthetic_profile, synthetic_rows

from specdec_lib.analysis.acceptance import acceptance_lines, agreement, block_gains, positions
from specdec_lib.analysis.advice import EVERY_KIND, OFF, advise, expected_speedups, measured_places, regrets, summary
from specdec_lib.analysis.theory import walltime_improvement
from specdec_lib.report.tables.advice import block_table

PARAMS = study(num_draft_tokens=[1, 2, 4, 6], batch_sizes=[1], prompt_tokens=[0], max_new_tokens=[48])
PROFILE, COSTS, PLACE = synthetic_profile(PARAMS), step_costs(), (1, 110.0)


def advised(profile=PROFILE, costs=COSTS):
    return advise(expected_speedups(profile, costs, measured_places(costs)))


def test_the_expected_speedup_is_that_of_leviathan_s_theorem_with_measured_costs():
    profile = synthetic_profile(PARAMS, prompts=2)
    lines = expected_speedups(profile, COSTS, [PLACE])
    (line,) = lines[
        (lines["method"] == "draft")
        & (lines["num_draft_tokens"] == 4)
        & (lines["temperature"] == 0)
        & (lines["category"] == "kind-0")
    ].itertuples()
    of_kind = profile[(profile["category"] == "kind-0") & (profile["method"] == "draft")]
    (row,) = of_kind[(of_kind["num_draft_tokens"] == 4) & (of_kind["temperature"] == 0)].itertuples()
    rate = row.accepted_by_position[0] / row.tested_by_position[0]
    theory = walltime_improvement(rate, 4, DRAFT_MS / TARGET_MS, 1 + 4 * VERIFY_MS / TARGET_MS)
    assert line.speedup == pytest.approx(theory)


def test_it_advises_the_best_setting_of_each_kind_and_temperature():
    lines = expected_speedups(PROFILE, COSTS, [PLACE])
    for line in advised().itertuples():
        here = lines[(lines["temperature"] == line.temperature) & (lines["category"] == line.category)]
        assert line.speedup == here["speedup"].max()
    assert set(advised()["category"]) == {"kind-0", "kind-1", EVERY_KIND}


def test_it_is_off_where_passes_over_many_tokens_cost_too_much():
    dear = COSTS.assign(ms=np.where(COSTS["model"] == "target", COSTS["ms"] * COSTS["num_tokens"], COSTS["ms"]))
    assert advised()["on"].any()
    assert not advised(costs=dear)["on"].any()


def test_a_gain_that_may_be_none_is_off():
    """A draft whose tokens are a little worth more than they cost, on prompts that differ much."""
    spread = PROFILE.assign(tokens=PROFILE["tokens"] * np.resize([0.5, 0.5, 1.2, 1.2], len(PROFILE)))
    best = advised(spread)
    assert (~best["on"] & (best["speedup"] > 1)).any()


def test_block_verification_by_gamma_has_a_line_for_each_sampled_setting():
    lines = block_gains(PROFILE)
    assert set(lines["num_draft_tokens"]) == set(PARAMS.num_draft_tokens)
    assert (lines["temperature"] > 0).all()
    assert lines["gain"].to_numpy() == pytest.approx(lines["block_tokens_per_pass"] / lines["tokens_per_pass"])
    assert len(block_table(lines)) == len(lines)


def test_block_verification_is_expected_from_its_own_counts():
    token, block = (expected_speedups(PROFILE, COSTS, [PLACE], rule)["speedup"] for rule in ("token", "block"))
    assert (block / token).round(4).eq(1.02).all()


def test_regret_is_what_the_best_measured_setting_would_have_gained():
    rows = synthetic_rows(PARAMS)
    table = regrets(rows, PARAMS, PROFILE, COSTS)
    assert set(table["category"]) == {EVERY_KIND, "kind-0", "kind-1"}
    assert (table["regret"] >= 0).all()
    assert table["tried"].max() == len(PARAMS.methods) * len(PARAMS.num_draft_tokens)
    exact = 1 - table["speedup"] / table["best_speedup"]
    assert table["regret"].to_numpy() == pytest.approx(exact.to_numpy())
    assert summary(table)["mean"] < 0.03
    assert summary(table)["worst"] < 0.10
    assert summary(table)["wrong"] == 0


def test_advice_that_takes_a_good_draft_for_a_bad_one_is_charged():
    """A profile that is wrong about the draft: everything is off, and the regret is the gain that was there."""
    wrong = PROFILE.assign(tokens=20.0)
    table = regrets(synthetic_rows(PARAMS), PARAMS, wrong, COSTS)
    assert (table["speedup"] == 1).all()
    assert table["regret"].max() > 0.2


def test_advice_to_speculate_at_a_loss_is_marked():
    slow = synthetic_rows(PARAMS)
    slow.loc[slow["method"] != "autoregressive", "tpot_ms"] *= 4
    table = regrets(slow, PARAMS, PROFILE, COSTS)
    whole = table[table["category"] == EVERY_KIND]
    assert whole["wrongly_on"].all()
    assert summary(table)["wrong"] >= len(whole)


def test_a_prompt_is_advised_without_what_the_profile_has_of_it():
    """The profile says of prompt p0 alone that speculation loses: only its own advice does not hear of it."""
    bad = PROFILE.assign(prompt_id="p0", tokens=0.01)
    alone = regrets(synthetic_rows(PARAMS), PARAMS, bad, COSTS)
    assert set(alone["category"]) == {"kind-1"}, "without p0, which is of the other kind, nothing is known for it"
    both = regrets(synthetic_rows(PARAMS), PARAMS, pd.concat([PROFILE, bad]), COSTS)
    whole = both[(both["category"] == EVERY_KIND) & (both["temperature"] == 0)].iloc[0]
    assert OFF in whole["advised"]
    assert any(name != OFF for name in whole["advised"])


def test_expected_and_measured_acceptance_are_compared_by_kind():
    lines = agreement(PROFILE, synthetic_rows(PARAMS), PARAMS)
    assert set(lines["category"]) == {"kind-0", "kind-1"}
    assert lines["agrees"].all()
    wrong = PROFILE.assign(accepted_by_position=[[0.0] * gamma for gamma in PROFILE["num_draft_tokens"]])
    lines = agreement(wrong, synthetic_rows(PARAMS), PARAMS)
    good = (lines["method"] == "draft") & (lines["category"] == "kind-0")  # three prompts with a high acceptance
    assert not lines[good]["agrees"].any()


def test_what_is_expected_by_kind_and_by_position():
    lines = acceptance_lines(PROFILE)
    assert (lines["acceptance_rate_low"] < lines["acceptance_rate"]).all()
    assert (lines["block_gain"].round(4) == 0.02).all()
    assert (lines["saved_by_second"] == 3 / 8).all()
    by_position = positions(PROFILE[PROFILE["num_draft_tokens"] == 4])
    assert by_position.groupby(["method", "temperature"])["position"].max().eq(4).all()
    assert pd.Series(by_position["evidence"]).eq("predicted").all()
