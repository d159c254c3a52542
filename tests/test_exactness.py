"""The exactness tests themselves: laws that are known, and twins that must fail."""

from collections import Counter

import pytest
import torch

from specdec_lib.analysis import exactness
from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers import ModelProposer, NgramProposer
from specdec_lib.decoding.verification import Verification, verify
from specdec_lib.models.toy import toy_draft, toy_model

PROMPTS = [torch.tensor([1, 2, 3]), torch.tensor([5]), torch.tensor([7, 7, 1, 2, 4, 6, 7])]


@pytest.fixture(scope="module")
def target():
    return toy_model(8, torch.Generator().manual_seed(0))


def run(target, proposer, verification="token", samples=3000, sampling=None):
    return exactness.sampling_test(
        target,
        proposer,
        PROMPTS,
        num_draft_tokens=2,
        sampling=sampling or SamplingConfig(),
        num_samples=samples,
        seed=0,
        verification=verification,
    )


def test_the_law_of_a_toy_is_its_table(target):
    law = exactness.target_law(target, torch.tensor([3, 5]), SamplingConfig(), 2)
    table = torch.softmax(target.model.table.double(), dim=-1)
    assert law[(4, 6)] == pytest.approx(float(table[3, 5, 4] * table[5, 4, 6]), rel=1e-5)
    assert sum(law.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(), SamplingConfig(0.7, top_k=3), SamplingConfig(1.3, top_p=0.8)], ids=str
)
@pytest.mark.parametrize("method", ["draft", "ngram"])
def test_sound_samplers_follow_the_joint_law(target, method, sampling):
    """A sound sampler fails with a chance of 1e-6; the seed is fixed."""
    draft = toy_draft(target, torch.Generator().manual_seed(1))
    proposer = ModelProposer(draft) if method == "draft" else NgramProposer()
    table = run(target, proposer, sampling=sampling)
    assert exactness.verdicts({method: table})["follows_target"].all()


def bonus_from_draft(target_probs, draft_probs, draft_tokens, generator):
    """Wrong: after full acceptance the last draft row is drawn from instead of the target's."""
    last = torch.cat([target_probs[:, :-1], draft_probs[:, -1:]], dim=1)
    return verify(last, draft_probs, draft_tokens, generator)


def kept_after_rejection(target_probs, draft_probs, draft_tokens, generator):
    """Wrong: every draft token is kept."""
    verdict = verify(target_probs, draft_probs, draft_tokens, generator)
    return Verification(torch.full_like(verdict.num_accepted, draft_tokens.shape[1]), verdict.next_token)


@pytest.mark.parametrize("rule", [exactness.without_residual, bonus_from_draft, kept_after_rejection])
def test_wrong_samplers_are_rejected(target, rule):
    draft = toy_draft(target, torch.Generator().manual_seed(1))
    assert not exactness.verdicts({"wrong": run(target, ModelProposer(draft), rule)})["follows_target"].any()


def test_an_impossible_token_fails_at_once():
    assert exactness.g_test(Counter({(1,): 99, (2,): 1}), {(1,): 1.0}).p_value == 0


def test_a_single_outcome_tests_nothing():
    assert exactness.g_test(Counter({(1,): 99}), {(1,): 1.0}).p_value == 1


def test_rare_sequences_are_pooled():
    law = {(0,): 0.5, (1,): 0.499, (2,): 0.0005, (3,): 0.0005}
    assert exactness.g_test(Counter({(0,): 500, (1,): 500}), law).degrees_of_freedom == 2


def test_greedy_agreement_names_the_first_difference(target):
    draft = toy_draft(target, torch.Generator().manual_seed(1))
    table = exactness.greedy_agreement(
        target, {"draft": ModelProposer(draft)}, PROMPTS, num_draft_tokens=(1, 3), max_new_tokens=12
    )
    assert table["equal_rows"].tolist() == [3, 3]
    assert table["first_difference"].isna().all()
    assert exactness.finding_greedy(table).startswith("6 of 6")


def test_unexpected_verdicts_raise(target):
    draft = toy_draft(target, torch.Generator().manual_seed(1))
    table = exactness.verdicts({"claims to be sound": run(target, ModelProposer(draft), exactness.without_residual)})
    with pytest.raises(AssertionError, match="claims to be sound"):
        exactness.check_verdicts(table)
