"""Self-speculation: the target's first layers draft in its own cache, and the output is the target's."""

import pytest
import torch
from tiny_models import needs_kernels, tiny_llama

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.composite import CompositeProposer
from specdec_lib.decoding.proposers.early_exit import EarlyExitProposer
from specdec_lib.exactness.adversaries import PROMPTS, enumeration_line, layered_pair
from specdec_lib.models.early_exit import early_exit
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.toy import toy_model

TEXTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2]), torch.tensor([6, 5, 3, 5, 8, 9, 7, 9])]


def decode(target, proposer, temperature=0.0, **more):
    options = {"max_new_tokens": 24, "sampling": SamplingConfig(temperature)} | more
    options["generator"] = torch.Generator().manual_seed(3)
    return speculative_decode(target, proposer, TEXTS, num_draft_tokens=3, **options)


def tokens(result):
    return [row.tolist() for row in result.tokens]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_kernels)])
def test_greedy_tokens_are_the_baselines_and_some_drafts_are_accepted(dtype):
    target = LanguageModel(tiny_llama(num_hidden_layers=4).to(dtype), "tiny")
    assert (target.engine == "kernels") == (dtype == torch.bfloat16)
    expected = autoregressive_decode(target, TEXTS, max_new_tokens=24, sampling=SamplingConfig(0))
    for proposer in (EarlyExitProposer(3), EarlyExitProposer(1), CompositeProposer(EarlyExitProposer(3))):
        result = decode(target, proposer)
        assert tokens(result) == tokens(expected)
    assert decode(target, EarlyExitProposer(3)).acceptance_rate > 0.1


def test_the_first_layers_are_those_of_the_target_and_leave_it_as_it_was():
    """As a model of so many layers would answer that has the same weights."""
    target = LanguageModel(tiny_llama(num_hidden_layers=3), "tiny")
    shorter = tiny_llama(num_hidden_layers=2)
    shorter.load_state_dict(target.model.state_dict(), strict=False)
    draft, expected = early_exit(target, 2), LanguageModel(shorter, "shorter")
    ids = torch.arange(12).view(2, 6)
    ours, theirs = (model.forward(ids, model.new_cache(2, 6)).hidden for model in (draft, expected))
    assert torch.equal(draft.logits(ours), expected.logits(theirs))
    assert len(target.body.layers) == target.model.config.num_hidden_layers == 3


def test_the_law_of_every_path_is_the_target_s():
    pair = layered_pair()
    for gamma, sampling in ((1, SamplingConfig()), (2, SamplingConfig(0.7, top_k=2))):
        line = enumeration_line(pair, EarlyExitProposer(1), PROMPTS, gamma, sampling)
        assert line["largest_error"] < 1e-12
        assert line["unexplained"] == 0


def test_captured_steps_give_the_same(request):
    target = LanguageModel(tiny_llama(num_hidden_layers=3), "tiny")
    calls = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "stop_token_ids": (5,)}]
    expected = [tokens(decode(target, EarlyExitProposer(2), **call)) for call in calls]
    recorder = request.getfixturevalue("recorder")
    assert [tokens(decode(target, EarlyExitProposer(2), **call)) for call in calls] == expected
    assert recorder.replays > recorder.captures > 0


@pytest.mark.parametrize("num_layers", [0, 3, 4])
def test_a_target_without_layers_to_leave_out_is_refused(num_layers):
    target = LanguageModel(tiny_llama(), "tiny")
    with pytest.raises(ValueError, match=f"tiny cannot draft with the first {num_layers} of its 3 layers: give"):
        decode(target, EarlyExitProposer(num_layers))
    with pytest.raises(ValueError, match="the first 1 of its 1 layers"):
        decode(toy_model(16, torch.Generator().manual_seed(0)), EarlyExitProposer(1))
