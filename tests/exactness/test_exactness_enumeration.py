"""The enumerated law: exact for the real code, off by what a bug costs, and honest about what it cannot explain."""

import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers import ModelProposer
from specdec_lib.exactness import mutants
from specdec_lib.exactness.adversaries import FILTERS, PROMPTS, adversarial_pairs
from specdec_lib.exactness.enumeration import enumerate_output, total_variation
from specdec_lib.exactness.joint_law import target_law
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.toy import ToyModel

PAIRS = adversarial_pairs()
TOLERANCE = 1e-12


def enumerate_pair(target, proposer, gamma, sampling=FILTERS[0], verification="token"):
    options = {"max_new_tokens": gamma + 2, "num_draft_tokens": gamma, "sampling": sampling}
    found = enumerate_output(target, proposer, PROMPTS, verification=verification, **options)
    return found, [target_law(target, prompt, sampling, gamma + 2) for prompt in PROMPTS]


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_the_law_of_every_path_is_the_target_s(name, sampling):
    for gamma in (1, 2):
        found, laws = enumerate_pair(*PAIRS[name], gamma, sampling)
        assert found.error(laws) < TOLERANCE
        assert found.unexplained == 0
        assert [sum(law.values()) for law in found.laws] == pytest.approx([1.0] * 3, abs=TOLERANCE)


@pytest.mark.parametrize("gamma", [3, 4])
def test_long_drafts_with_a_ragged_batch(gamma):
    found, laws = enumerate_pair(*PAIRS["zero-probability tokens"], gamma, SamplingConfig(0.7, top_k=2, top_p=0.8))
    assert found.error(laws) < TOLERANCE
    assert found.unexplained == 0


def test_a_coin_that_can_be_worked_out_by_hand():
    """Heads 3/4 by the target, 1/4 by the draft. A rejected tail (3/4 * 2/3) is resampled from the target."""
    tables = [torch.tensor(probs, dtype=torch.float64).log().expand(2, 2, 2) for probs in ([0.75, 0.25], [0.25, 0.75])]
    target, draft = (LanguageModel(ToyModel(table.clone()), "coin") for table in tables)
    found = enumerate_output(
        target,
        ModelProposer(draft),
        [torch.tensor([1])],
        max_new_tokens=3,
        num_draft_tokens=1,
        sampling=SamplingConfig(),
        verification=mutants.without_residual,
    )
    heads = sum(mass for tokens, mass in found.laws[0].items() if tokens[1] == 0)
    assert heads == pytest.approx(0.25 + 0.75 * 2 / 3 * 0.75)


def test_a_number_used_twice_is_noticed():
    found, _ = enumerate_pair(*PAIRS["random"], 2, verification=mutants.one_stream)
    assert found.unexplained > 0.1


def test_total_variation():
    assert total_variation({(0,): 0.5, (1,): 0.5}, {(0,): 0.75, (2,): 0.25}) == pytest.approx(0.5)
