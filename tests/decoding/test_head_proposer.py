"""Drafting with a head: what it proposes from its cache is what it would propose from scratch."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from tiny_models import save_head, tiny_target

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.head import HeadDrafting
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.models.pair import load_pair
from specdec_lib.models.shipped_head import ShippedHead

PUBLISHED = Path(__file__).parent.parent / "support" / "recorded_heads" / "eagle3-two-layers"
PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2]), torch.tensor([6, 5, 3, 5, 8, 9, 7, 9])]


@pytest.fixture(scope="module", params=["shipped", "published"])
def pair(request, tmp_path_factory):
    """A target and an untrained head that scores every token: with two almost uniform models, acceptance is partial."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "published":
        found = load_pair(target=write_checkpoint(folder, layers=6), draft=PUBLISHED, dtype="float32")
        return found.target, found.draft
    target = tiny_target()
    return target, ShippedHead.load(save_head(folder, target, torch.arange(48)), target)


@pytest.fixture(scope="module")
def target(pair):
    return pair[0]


@pytest.fixture(scope="module")
def head(pair):
    return pair[1]


def decode(target, proposer, sampling, gamma, prompts=PROMPTS):
    return speculative_decode(
        target,
        proposer,
        prompts,
        max_new_tokens=18,
        num_draft_tokens=gamma,
        sampling=sampling,
        generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize("gamma", [1, 3, 6])
def test_greedy_output_equals_the_baseline(target, head, gamma):
    greedy = SamplingConfig(temperature=0)
    expected = autoregressive_decode(target, PROMPTS, max_new_tokens=18, sampling=greedy).tokens
    got = decode(target, ModelProposer(head), greedy, gamma).tokens
    assert [row.tolist() for row in got] == [row.tolist() for row in expected]


class Compared(Proposer):
    """Checks every first drafted distribution against a head that reads the whole text anew, without any cache."""

    def __init__(self, head, target):
        self.head, self.target, self.checked = head, target, 0

    def start(self, call):
        self.drafting = HeadDrafting(self.head, call)
        return self

    def read_prompt(self, *chunk):
        self.drafting.read_prompt(*chunk)

    def propose(self, rows, num_draft_tokens, uniforms):
        tokens, probs = self.drafting.propose(rows, num_draft_tokens, uniforms)
        for row in (~rows.done).nonzero()[:, 0].tolist():
            text = rows.tokens[row : row + 1, : rows.lengths[row]]
            assert torch.allclose(probs[row, 0], self.from_scratch(text), atol=1e-5)
            self.checked += 1
        return tokens, probs

    def from_scratch(self, text):
        features = self.target.forward(text[:, :-1], self.target.new_cache(1, 64)).features
        hidden = self.head.forward(text[:, 1:], self.head.fuse(features), self.head.new_cache(1, 64))
        return torch.softmax(self.head.scores(hidden[0, -1]).float(), dim=-1)


@pytest.mark.parametrize("chunk", [512, 3])
def test_after_any_acceptance_the_cache_holds_what_a_fresh_head_would_compute(target, head, chunk, monkeypatch):
    monkeypatch.setattr("specdec_lib.decoding.step.PREFILL_CHUNK", chunk)
    proposer = Compared(head, target)
    result = decode(target, proposer, SamplingConfig(), 3)
    assert 0 < result.acceptance_rate < 1
    assert proposer.checked > 10
