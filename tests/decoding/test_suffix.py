"""Lookup that learns: what it drafts after which text, from a row's own text and from memory alone."""

import pytest
import torch
from test_proposers import call_with

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.composite import CompositeProposer
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.suffix import DEPTH, SuffixProposer
from specdec_lib.models.toy import toy_draft, toy_model

TARGET = toy_model(12, torch.Generator().manual_seed(0))
ROUND = [1, 2, 3, 4, 5, 6]


def propose(texts: list[list[int]], gamma: int = 4, proposer: SuffixProposer | None = None) -> list[list[int]]:
    """The tokens proposed after each text."""
    call = call_with(TARGET, texts, gamma)
    drafting = (proposer or SuffixProposer()).start(call)
    for start in range(0, max(map(len, texts)), 3):  # prompts are read in chunks
        drafting.read_prompt(call.rows, start, start + 3, torch.empty(0))
    tokens, probs = drafting.propose(call.rows, gamma, call.uniforms.next())
    assert torch.equal(probs.sum(-1) > 0, probs.gather(2, tokens[:, :, None])[:, :, 0] == 1)  # one-hots
    return [row[known].tolist() for row, known in zip(tokens, probs.sum(-1) > 0, strict=True)]


def test_it_drafts_what_followed_most_often_and_of_equals_what_came_last():
    assert propose([[7, 1, 7, 1, 7, 2, 7]]) == [[1]]
    assert propose([[7, 1, 7, 2, 7]]) == [[2]]


def test_a_draft_is_no_longer_than_the_match_it_follows():
    assert propose([[*ROUND, 0, 2]]) == [[3]]
    assert propose([[*ROUND, 0, 1, 2]]) == [[3, 4]]
    assert propose([[*ROUND, 0, 1, 2, 3]]) == [[4, 5, 6]]


def test_a_draft_ends_where_it_is_no_longer_likely():
    """After 7 8 all went on with 9; then with each of twelve tokens once, so that none has a tenth of all."""
    proposer = SuffixProposer()
    proposer.remember([7, 8, 9, last] for last in range(12))
    assert propose([[7, 8]], proposer=proposer) == [[9]]


def test_without_a_match_nothing_is_drafted_and_no_place_is_kept_for_it():
    call = call_with(TARGET, [[1, 2, 3], [4]], 4)
    tokens, probs = SuffixProposer().start(call).propose(call.rows, 4, call.uniforms.next())
    assert (tokens.shape, probs.shape) == ((2, 0), (2, 0, 12))


def test_a_match_may_be_asked_to_be_longer():
    assert propose([[1, 2, 1]], proposer=SuffixProposer(shortest=2)) == [[]]
    with pytest.raises(ValueError, match="shortest is 0: give at least 1"):
        SuffixProposer(shortest=0)


def test_rows_know_nothing_of_each_other_and_what_is_remembered_is_said():
    texts = [[*ROUND, 0, 1, 2, 3], [8, 2, 3]]
    proposer = SuffixProposer()
    assert propose(texts, proposer=proposer) == [[4, 5, 6], []]
    assert propose(texts, proposer=proposer) == [[4, 5, 6], []]  # a call leaves nothing behind
    proposer.remember([torch.tensor(ROUND)])
    assert propose(texts, proposer=proposer) == [[4, 5, 6], [4, 5]]


def test_the_first_tokens_are_the_same_however_many_are_asked_for():
    """So that rows which draft fewer do not change what the others draft."""
    text = ([*ROUND, 0, 1, 2, 9, 9, 1, 2, 9] * 3)[:40]
    for end in range(8, 30):
        call = call_with(TARGET, [text[:end]], 4)
        drafting = SuffixProposer().start(call)
        few, many = (drafting.propose(call.rows, number, call.uniforms.next())[0] for number in (2, 4))
        assert few.tolist() == many[:, :2].tolist()


def test_sequences_longer_than_the_tree_is_deep_are_followed():
    long = ROUND * (DEPTH // 3)
    call = call_with(TARGET, [long[:30]], 4)
    tokens, _ = SuffixProposer().start(call).propose(call.rows, 4, call.uniforms.next())
    assert tokens.tolist() == [ROUND[:4]]


@pytest.mark.parametrize("composite", [False, True], ids=["alone", "with a draft"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_the_baselines_and_the_same_in_any_batch(composite, temperature):
    target = toy_model(6, torch.Generator().manual_seed(1), sharpness=4.0)  # repeats itself
    draft = ModelProposer(toy_draft(target, torch.Generator().manual_seed(2), noise=6.0))
    proposer = CompositeProposer(draft, SuffixProposer(shortest=2)) if composite else SuffixProposer()
    prompts = [torch.tensor([1]), torch.tensor([5, 2, 5, 2, 5]), torch.tensor([1, 1, 1, 2, 4, 0, 1])]

    def decode(rows):
        options = {"max_new_tokens": 30, "sampling": SamplingConfig(temperature), "row_numbers": rows}
        generator = torch.Generator().manual_seed(3)
        return speculative_decode(
            target, proposer, [prompts[row] for row in rows], num_draft_tokens=4, generator=generator, **options
        )

    together = decode([0, 1, 2])
    assert together.accepted > 10
    assert together.drafted < 4 * together.steps
    for row in range(3):
        assert decode([row]).tokens[0].tolist() == together.tokens[row].tolist()
    if temperature == 0:
        expected = autoregressive_decode(target, prompts, max_new_tokens=30, sampling=SamplingConfig(0)).tokens
        assert [row.tolist() for row in together.tokens] == [row.tolist() for row in expected]
