"""What a second candidate gains: the formula against every path of the rule, and the gains of studies and of GPUs."""

from itertools import product

import numpy as np
import pytest
from synthetic_rows import step_costs, study, synthetic_profile

from specdec_lib.analysis.second_candidate import WORTH, gains_with_presets, second_candidate_gains
from specdec_lib.analysis.theory import expected_tokens_by_position, expected_tokens_of_two_chains
from specdec_lib.report.captions.advice import finding_second_candidate
from specdec_lib.report.tables.advice import second_candidate_table

TARGET, DRAFT = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])  # the same after every text


def others_of(first):
    """The draft's law without a token."""
    others = np.where(np.arange(3) == first, 0, DRAFT)
    return others / others.sum()


def every_path(gamma):
    """E[tokens of a pass], by recursive rejection without replacement over all drafts: both chains, token by token."""
    ratio, residual = np.minimum(1, TARGET / DRAFT), np.maximum(TARGET - DRAFT, 0) / np.maximum(TARGET - DRAFT, 0).sum()

    def chain(tokens):  # accepted of a chain, in expectation
        return np.cumprod(ratio[list(tokens)]).sum()

    expected = 0.0
    for first, second in product(range(3), repeat=2):
        others = others_of(first)
        second_kept = min(1, residual[second] / others[second]) if others[second] else 0
        for later in product(range(3), repeat=gamma - 1):
            chance = DRAFT[first] * others[second] * np.prod(DRAFT[list(later)])
            kept, accepted = ratio[first], 1 + chain(later)
            expected += chance * (1 + kept * accepted + (1 - kept) * second_kept * accepted)
    return expected


@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_the_formula_is_what_every_path_of_the_rule_gives(gamma):
    accepted, residual = np.minimum(TARGET, DRAFT).sum(), np.maximum(TARGET - DRAFT, 0)
    rejected = np.maximum(DRAFT - TARGET, 0)
    saved = sum(
        rejected[first] / rejected.sum() * np.minimum(residual / residual.sum(), others_of(first)).sum()
        for first in range(3)
    )
    assert expected_tokens_of_two_chains([accepted] * gamma, saved) == pytest.approx(every_path(gamma))


def test_without_anything_saved_there_are_the_tokens_of_one_chain():
    assert expected_tokens_of_two_chains([0.6, 0.5], 0) == expected_tokens_by_position([0.6, 0.5])


PARAMS = study(num_draft_tokens=[1, 2, 4, 6], batch_sizes=[1], prompt_tokens=[0], max_new_tokens=[48])


def test_a_study_s_gain_grows_with_what_is_saved_and_falls_with_the_cost_of_verification():
    profile, costs = synthetic_profile(PARAMS), step_costs()
    profile = profile.assign(saved_by_second=0.2 * profile["steps"])
    (gain, *_), *_ = found = [
        second_candidate_gains(profile.assign(saved_by_second=share * profile["saved_by_second"]), costs)["gain"]
        for share in (1, 0)
    ]
    assert gain > found[1][0]
    dear = costs.assign(ms=costs["ms"].where(costs["model"] != "target", costs["ms"] * costs["num_tokens"]))
    assert second_candidate_gains(profile, dear)["gain"][0] < gain
    assert not (found[1] > 1).any(), "nothing saved, nothing gained"


def test_the_band_holds_the_gain():
    profile = synthetic_profile(PARAMS)
    lines = second_candidate_gains(profile.assign(saved_by_second=0.2 * profile["steps"]), step_costs())
    assert (lines["gain_low"] <= lines["gain"]).all()
    assert (lines["gain"] <= lines["gain_high"]).all()
    assert (lines["evidence"] == "predicted").all()


def test_on_the_gpu_presets_it_pays_most_at_batch_1():
    profile = synthetic_profile(PARAMS)
    lines = gains_with_presets(PARAMS, profile.assign(saved_by_second=0.2 * profile["steps"]), step_costs())
    assert (lines["gain_low"] <= lines["gain"]).all()
    assert (lines["gain"] <= lines["gain_high"]).all()
    for gpu in ("a100", "h100", "h200"):
        of_gpu = lines[lines["gpu"] == gpu].set_index("batch_size")["gain"]
        assert of_gpu[1] > WORTH
        assert of_gpu[1] > of_gpu[8] > of_gpu[32]
    assert len(second_candidate_table(lines)) == len(lines)
    assert "a100, h100, h200" in finding_second_candidate(lines, PARAMS.gpu)
