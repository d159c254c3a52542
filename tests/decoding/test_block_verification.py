"""Block verification: the same law as token by token, and never fewer accepted tokens in expectation."""

from itertools import product

import numpy as np
import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.decoding.verification.block import joint_chances, keep_chances, remainders, verify_block
from specdec_lib.exactness.adversaries import PROMPTS, adversarial_pairs, enumeration_line
from specdec_lib.exactness.mutants import block_with_token_residual, block_with_uncut_joint
from specdec_lib.study.offline import Reading, expected_counts

VOCABULARY, GAMMA = 3, 3


@pytest.mark.parametrize("name", adversarial_pairs())
@pytest.mark.parametrize("method", ["draft", "ngram"])
def test_the_law_of_every_path_is_the_target_s(name, method):
    pair = adversarial_pairs()[name]
    proposer = ModelProposer(pair.draft) if method == "draft" else NgramProposer()
    line = enumeration_line(pair, proposer, PROMPTS, 2, SamplingConfig(temperature=0.8), verify_block)
    assert line["largest_error"] < 1e-12
    assert line["unexplained"] == 0


@pytest.mark.parametrize("rule", [block_with_token_residual, block_with_uncut_joint])
def test_its_mutants_are_biased(rule):
    pair = adversarial_pairs()["random"]
    line = enumeration_line(pair, ModelProposer(pair.draft), PROMPTS, 2, SamplingConfig(), rule)
    assert line["largest_error"] > 1e-4


def laws(seed):
    """Target and draft with a law of their own after every prefix of draft tokens, `[prefixes, V]` by length."""
    generator = torch.Generator().manual_seed(seed)

    def random(length):
        weights = torch.rand(VOCABULARY**length, VOCABULARY, generator=generator, dtype=torch.float64) ** 3
        return weights / weights.sum(dim=1, keepdim=True)

    return [random(n) for n in range(GAMMA + 1)], [random(n) for n in range(GAMMA)]


def expected_accepted(target, draft):
    """E[accepted] of token by token and of block verification, summed over all drafts."""
    by_token = by_block = 0.0
    for tokens in product(range(VOCABULARY), repeat=GAMMA):
        prefix = [int("0" + "".join(map(str, tokens[:n])), VOCABULARY) for n in range(GAMMA + 1)]
        target_probs = torch.stack([target[n][prefix[n]] for n in range(GAMMA + 1)])[None]
        draft_probs = torch.stack([draft[n][prefix[n]] for n in range(GAMMA)])[None]
        chance = float(torch.stack([draft[n][prefix[n], tokens[n]] for n in range(GAMMA)]).prod())
        ratios = [min(1.0, float(target_probs[0, n, t] / draft_probs[0, n, t])) for n, t in enumerate(tokens)]
        by_token += chance * sum(torch.tensor(ratios).cumprod(0).tolist())
        joint = joint_chances(target_probs, draft_probs, torch.tensor([tokens]))
        keep = keep_chances(remainders(target_probs, draft_probs, joint), joint)[0, 1:]
        fails_after = torch.cat([(1 - keep).flip(0).cumprod(0).flip(0)[1:], torch.ones(1)])
        by_block += chance * float((keep * fails_after * torch.arange(1, GAMMA + 1)).sum())
    return by_token, by_block


@pytest.mark.parametrize("seed", range(6))
def test_it_never_accepts_fewer_tokens_in_expectation(seed):
    by_token, by_block = expected_accepted(*laws(seed))
    assert by_block > by_token - 1e-12
    assert by_block > 1.001 * by_token, "with laws that differ it gains"


@pytest.mark.parametrize("seed", range(3))
def test_the_profile_expects_what_every_draft_gives(seed):
    """`study.offline` reads texts of the target, not drafts: over all texts it expects the same number."""
    target, draft = laws(seed)
    expected = np.zeros(2)
    for text in product(range(VOCABULARY), repeat=GAMMA):
        prefix = [int("0" + "".join(map(str, text[:n])), VOCABULARY) for n in range(GAMMA)]
        chances = np.array([[float(law[n][prefix[n], text[n]]) for n in range(GAMMA)] for law in (target, draft)])
        nothing = np.zeros((1, 1, GAMMA))
        reading = Reading((chances[1] / chances[0])[None, None], nothing, nothing, nothing[:, :, 0], nothing[:, :, 0])
        counts = expected_counts(reading, 0, GAMMA)
        expected += chances[0].prod() * np.array([counts["tokens"] - 1, counts["block_tokens"] - 1])
    assert expected == pytest.approx(expected_accepted(target, draft))


def test_with_one_draft_token_it_keeps_it_as_often_as_token_by_token():
    target, draft = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]]), torch.tensor([[[0.8, 0.1, 0.1]]])
    joint = joint_chances(target, draft, torch.tensor([[0]]))
    assert joint[0, 1] == pytest.approx(0.5 / 0.8)
    assert keep_chances(remainders(target, draft, joint), joint)[0, 1] == pytest.approx(float(joint[0, 1]))
