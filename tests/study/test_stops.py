"""Counts and times up to the first stop token of a text of fixed length, and the mode in which texts end there."""

import pytest
import torch

from specdec_lib import NgramProposer, SamplingConfig, load_pair, speculative_decode
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.study.rows.stops import stop_columns


def test_steps_before_the_stop_are_told_from_those_after_it():
    result = DecodeResult(
        tokens=[torch.tensor([5, 6, 9, 7, 7, 7])],  # 9 stops; it is the second token of the first step
        ttft_s=1.0,
        step_s=[0.2, 0.3, 0.1],
        step_tokens=[[2], [2], [1]],
        step_tested=[[2], [1], [1]],
        steps=3,
    )
    columns = stop_columns(result, {9})
    assert (columns["stopped_prompts"], columns["tokens_to_stop"]) == (1, 3)
    assert (columns["tested_to_stop"], columns["accepted_to_stop"]) == (2, 1)
    assert columns["tpot_to_stop_ms"] == pytest.approx(100)  # two tokens in 0.2 s
    assert columns["tpot_past_stop_ms"] == pytest.approx(400 / 3)  # three tokens in 0.4 s


@pytest.mark.parametrize("seed", range(4))
def test_up_to_the_stop_the_counts_are_those_of_a_call_that_stops(seed):
    """A row's random numbers depend on its number alone, so both calls decode the same text up to the stop."""
    pair = load_pair("toy", device="cpu")
    prompts = [torch.tensor([1, 2, 3, 1, 2]), torch.tensor([4, 4, 4])]
    decoded = [
        speculative_decode(
            pair.target,
            NgramProposer(),
            prompts,
            max_new_tokens=40,
            num_draft_tokens=3,
            sampling=SamplingConfig(),
            generator=torch.Generator().manual_seed(seed),
            stop_token_ids=stops,
        )
        for stops in ((), (5,))
    ]
    columns = stop_columns(decoded[0], {5})
    assert columns["tokens_to_stop"] == decoded[1].new_tokens
    # A step that emits the stop is counted whole; the call that stops cuts it there.
    assert 0 <= columns["tested_to_stop"] - decoded[1].tested <= 3 * len(prompts)
    assert sum(map(sum, decoded[0].step_tested)) == decoded[0].tested


def test_without_a_stop_token_the_whole_text_counts_and_unknown_stops_are_null():
    result = DecodeResult([torch.tensor([1, 2])], 1.0, [0.1], [[1]], [[0]])
    assert stop_columns(result, ()) == {}
    columns = stop_columns(result, {7})
    assert (columns["stopped_prompts"], columns["tokens_to_stop"], columns["tpot_past_stop_ms"]) == (0, 2, None)
