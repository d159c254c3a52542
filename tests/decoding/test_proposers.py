"""What lookup copies, and that a draft reads what lookup copied in its place."""

import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.proposers.composite import CompositeProposer
from specdec_lib.decoding.proposers.model import ModelDrafting, ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.uniforms import Uniforms, seeded_table
from specdec_lib.models.toy import toy_draft, toy_model


def call_with(target, prompts, gamma):
    """A call of these prompts before its first step."""
    rows = Rows(target, batch_size=len(prompts), capacity=80, width=gamma + 1, num_stops=0)
    rows.fill([torch.tensor(prompt) for prompt in prompts], max_new_tokens=8, stop_token_ids=())
    sampling, uniforms = SamplingConfig(), Uniforms(seeded_table(0, range(len(prompts)), 9, gamma + 1))
    return Call(target, sampling, gamma, PlainOps(sampling), rows, Counters(gamma, target.device), uniforms)


def propose(texts: list[list[int]], gamma: int = 3) -> list[list[int]]:
    """The tokens proposed after each text, up to the first position without a proposal."""
    call = call_with(toy_model(12, torch.Generator().manual_seed(0)), texts, gamma)
    tokens, probs = NgramProposer().start(call).propose(call.rows, gamma, call.uniforms.next())
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


class CheckedDrafting(ModelDrafting):
    """Compares the cache that drafting starts from with a fresh reading of the whole text."""

    checked = 0

    def _read_new_tokens(self, rows):
        hidden = super()._read_new_tokens(rows)
        for row in (~rows.done).nonzero()[:, 0].tolist():
            length = int(rows.lengths[row])
            fresh = self.draft.new_cache(1, 64)
            self.draft.forward(rows.tokens[row : row + 1, :length], fresh)
            ours, theirs = self.cache.layers[0].keys[row, :, :length], fresh.layers[0].keys[0, :, :length]
            assert torch.equal(ours, theirs)
            CheckedDrafting.checked += 1
        return hidden


class Checked(Proposer):
    def __init__(self, draft):
        self.draft = draft

    def start(self, call):
        return CheckedDrafting(self.draft, call)


@pytest.mark.parametrize("batch", [PROMPTS, PROMPTS[1:2]], ids=["ragged", "alone"])
@pytest.mark.parametrize("gamma", [1, 3, 6])
def test_a_draft_reads_what_lookup_copied_in_its_place(gamma, batch):
    """The table repeats itself, so that lookup is often right; the draft is unrelated."""
    target = toy_model(6, torch.Generator().manual_seed(1), sharpness=4.0)
    draft = Checked(toy_draft(target, torch.Generator().manual_seed(2), noise=6.0))
    prompts = [prompt % 6 for prompt in batch]
    options = {"max_new_tokens": 30, "sampling": SamplingConfig(temperature=0)}
    expected = autoregressive_decode(target, prompts, **options)
    CheckedDrafting.checked = 0
    result = speculative_decode(target, CompositeProposer(draft), prompts, num_draft_tokens=gamma, **options)
    assert [row.tolist() for row in result.tokens] == [row.tolist() for row in expected.tokens]
    assert CheckedDrafting.checked >= 8
    assert result.accepted > 10


def test_a_composite_copies_where_it_can_and_drafts_elsewhere():
    model = toy_model(12, torch.Generator().manual_seed(0))
    call = call_with(model, [[1, 2, 3, 4, 9, 1, 2], [5, 6]], gamma=3)
    drafting = CompositeProposer(ModelProposer(model)).start(call)
    drafting.read_prompt(call.rows, 0, 7, torch.empty(0))
    tokens, probs = drafting.propose(call.rows, 3, call.uniforms.next())
    assert tokens[0].tolist() == [3, 4, 9]
    assert (probs[0].amax(dim=-1) == 1).all()
    assert ((probs[1] > 0).sum(dim=-1) > 1).all()


class AlwaysSeven(Proposer):
    """The smallest proposer: one method. It drafts token 7, whatever came before."""

    def propose(self, rows, num_draft_tokens, uniforms):
        tokens = torch.full((rows.batch_size, num_draft_tokens), 7)
        return tokens, torch.nn.functional.one_hot(tokens, rows.vocab_size).float()


def test_a_proposer_of_ones_own_needs_one_method():
    target = toy_model(12, torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 20, "sampling": SamplingConfig(temperature=0)}
    expected = autoregressive_decode(target, PROMPTS, **options)
    result = speculative_decode(target, AlwaysSeven(), PROMPTS, num_draft_tokens=2, **options)
    assert [row.tolist() for row in result.tokens] == [row.tolist() for row in expected.tokens]
    assert result.drafted == 2 * result.steps


def test_what_cannot_draft_is_refused():
    with pytest.raises(ValueError, match="str cannot draft: give the draft of a pair"):
        ModelProposer("Qwen/Qwen3-0.6B")
