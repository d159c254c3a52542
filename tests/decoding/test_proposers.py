"""What the n-gram proposer copies; drafting models are tested through decoding."""

import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import CompositeProposer, ModelProposer, NgramProposer
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.state import DecodeState
from specdec_lib.models.toy import toy_draft, toy_model


def propose(texts: list[list[int]], gamma: int = 3) -> list[list[int]]:
    """The tokens proposed behind each text, up to the first position without a proposal."""
    generator = torch.Generator().manual_seed(0)
    model = toy_model(12, generator)
    prompts = [torch.tensor(text) for text in texts]
    state = DecodeState(model, prompts, max_new_tokens=8, stop_token_ids=(), slack=gamma + 1)
    tokens, probs = NgramProposer().propose(state, gamma, SamplingConfig(), generator)
    assert torch.equal(probs.sum(-1) > 0, probs.gather(2, tokens[:, :, None])[:, :, 0] == 1)
    return [row[known].tolist() for row, known in zip(tokens, probs.sum(-1) > 0, strict=True)]


def test_it_copies_what_followed_the_last_tokens():
    assert propose([[1, 2, 3, 4, 5, 9, 1, 2, 3]]) == [[4, 5, 9]]


def test_longer_matches_win_over_more_recent_ones():
    assert propose([[1, 2, 3, 4, 0, 3, 5, 1, 2, 3]]) == [[4, 0, 3]]


def test_of_equal_matches_the_latest_wins():
    assert propose([[3, 4, 0, 3, 5, 7, 3]]) == [[5, 7, 3]]


def test_without_a_match_nothing_is_proposed():
    assert propose([[1, 2, 3], [4]]) == [[], []]


def test_a_copy_stops_at_the_end_of_the_text():
    assert propose([[6, 1, 6]]) == [[1, 6]]


def test_rows_are_searched_by_themselves():
    assert propose([[1, 2, 1], [2, 3, 4, 5, 2]]) == [[2, 1], [3, 4, 5]]


def test_sizes_out_of_order_are_refused():
    with pytest.raises(ValueError, match="shortest <= longest"):
        NgramProposer(longest=1, shortest=2)


PROMPTS = [torch.tensor([1]), torch.tensor([5, 2, 5, 2, 5]), torch.tensor([7, 7, 1, 2, 4, 6, 7])]


class Checked(ModelProposer):
    """Compares the cache that drafting starts from with a fresh reading of the whole text."""

    checked = 0

    def _read_on(self, state):
        hidden = super()._read_on(state)
        for row in (~state.done).nonzero()[:, 0].tolist():
            length = int(state.lengths[row])
            fresh = self.draft.new_cache(1, 64)
            self.draft.forward(state.tokens[row : row + 1, :length], fresh)
            ours, theirs = self.cache.layers[0].keys[row, :, :length], fresh.layers[0].keys[0, :, :length]
            assert torch.equal(ours, theirs)
            self.checked += 1
        return hidden


@pytest.mark.parametrize("batch", [PROMPTS, PROMPTS[1:2]], ids=["ragged", "alone"])
@pytest.mark.parametrize("gamma", [1, 3, 6])
def test_a_draft_reads_what_lookup_copied_in_its_place(gamma, batch):
    """The table repeats itself, so that lookup is often right; the draft is unrelated."""
    target = toy_model(6, torch.Generator().manual_seed(1), sharpness=4.0)
    draft = Checked(toy_draft(target, torch.Generator().manual_seed(2), noise=6.0))
    prompts = [prompt % 6 for prompt in batch]
    greedy, generator = SamplingConfig(temperature=0), torch.Generator().manual_seed(0)
    expected = autoregressive_decode(target, prompts, max_new_tokens=30, sampling=greedy, generator=generator)
    result = speculative_decode(
        target,
        CompositeProposer(draft),
        prompts,
        max_new_tokens=30,
        num_draft_tokens=gamma,
        sampling=greedy,
        generator=generator,
    )
    assert [row.tolist() for row in result.tokens] == [row.tolist() for row in expected.tokens]
    assert draft.checked >= 8
    assert result.accepted > 10


def test_a_draft_that_was_part_of_a_composite_reads_no_more_than_its_own_on_its_own():
    target = toy_model(6, torch.Generator().manual_seed(1))
    draft = ModelProposer(target)
    options = {"max_new_tokens": 4, "num_draft_tokens": 3, "sampling": SamplingConfig()}
    for proposer, alone in ((draft, True), (CompositeProposer(draft), False), (draft, True)):
        speculative_decode(target, proposer, [torch.tensor([1, 2])], generator=torch.Generator(), **options)
        assert draft.alone == alone


def test_a_composite_copies_where_it_can_and_drafts_elsewhere():
    model = toy_model(12, torch.Generator().manual_seed(0))
    prompts = [torch.tensor([1, 2, 3, 4, 9, 1, 2]), torch.tensor([5, 6])]
    state = DecodeState(model, prompts, max_new_tokens=8, stop_token_ids=(), slack=4)
    proposer, generator = CompositeProposer(ModelProposer(model)), torch.Generator().manual_seed(0)
    proposer.start(state)
    proposer.read_prompt(state, 0, 7, torch.empty(0))
    tokens, probs = proposer.propose(state, 3, SamplingConfig(), generator)
    assert tokens[0].tolist() == [3, 4, 9]
    assert (probs[0].amax(dim=-1) == 1).all()
    assert ((probs[1] > 0).sum(dim=-1) > 1).all()
