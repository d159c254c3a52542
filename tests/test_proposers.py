"""What the n-gram proposer copies; drafting models are tested through decoding."""

import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers import NgramProposer
from specdec_lib.decoding.state import DecodeState
from specdec_lib.models.toy import toy_model


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
