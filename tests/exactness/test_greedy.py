"""Greedy divergences: none in float32; in bfloat16 each is explained by rounding, and a bug is not."""

import pytest
import torch

from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.exactness.adversaries import tiny_llamas
from specdec_lib.exactness.greedy import greedy_agreement, replay, rounding_bound
from specdec_lib.exactness.mutants import StaleTarget
from specdec_lib.models.runner import LanguageModel

PROMPTS = [torch.tensor([1, 2, 3]), torch.tensor([5]), torch.tensor([7, 7, 1, 2, 4, 6, 7])]
OPTIONS = {"num_draft_tokens": (1, 3), "max_new_tokens": 40}


def models(dtype, vocab_size=8):
    return [LanguageModel(model.to(dtype), "tiny Llama") for model in tiny_llamas(vocab_size)]


def test_float32_output_is_the_baseline_s():
    target, draft = models(torch.float32)
    table, divergences = greedy_agreement(
        target, {"draft": ModelProposer(draft), "ngram": NgramProposer()}, PROMPTS, **OPTIONS
    )
    assert (table["equal_rows"] == 3).all()
    assert table["rounding_bound"].max() < 1e-4
    assert divergences.empty


def test_replays_of_any_width_read_the_same_text():
    target, _ = models(torch.float32)
    continuations = [torch.arange(5) % 8 for _ in PROMPTS]
    alone, together = replay(target, PROMPTS, continuations, (1, 3))
    assert alone.shape == (3, 5, 8)
    assert torch.allclose(alone, together, atol=1e-4)
    text = torch.cat([PROMPTS[0], continuations[0]])
    whole = target.logits(target.forward(text[None], target.new_cache(1, len(text))).hidden)[0, 2:-1]
    assert torch.allclose(alone[0], whole, atol=1e-4)


def test_prompts_of_one_token_can_be_replayed():
    """There is nothing to read before them."""
    target, _ = models(torch.float32)
    alone, together = replay(target, [torch.tensor([5])], [torch.arange(5) % 8], (1, 3))
    assert torch.allclose(alone, together, atol=1e-4)


def test_the_bound_is_the_largest_change_of_a_lead_and_at_least_one_unit():
    alone = torch.tensor([[[4.0, 3.0, -9.0]]])
    moved = torch.tensor([[[4.25, 2.75, -8.75]]])  # the lead of the first over the second grows by a half
    assert rounding_bound(alone, moved, torch.bfloat16) == 0.5
    assert rounding_bound(alone, alone + 1, torch.bfloat16) == 4 * torch.finfo(torch.bfloat16).eps


def test_bfloat16_divergences_are_explained_or_absent():
    target, draft = models(torch.bfloat16, vocab_size=64)
    table, divergences = greedy_agreement(target, {"draft": ModelProposer(draft)}, PROMPTS, **OPTIONS)
    assert len(divergences) == (table["rows"] - table["equal_rows"]).sum()
    assert divergences.empty or divergences["explained"].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bug_is_not_explained_by_rounding(dtype):
    """A stale cache entry makes another token the best one by far more than rounding."""
    target, draft = models(dtype)
    stale = StaleTarget(target.model, "stale")
    _, divergences = greedy_agreement(stale, {"draft": ModelProposer(draft)}, PROMPTS, **OPTIONS)
    assert len(divergences)
    assert not divergences["explained"].all()
