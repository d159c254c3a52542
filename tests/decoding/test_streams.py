"""Random numbers by row: the published generator, one stream for each row, and no number twice."""

import pytest
import torch
from scipy import stats

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import CompositeProposer, ModelProposer, NgramProposer
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.streams import MULTIPLIERS, WORD, RowStreams, philox, round_keys, uniforms
from specdec_lib.models.toy import toy_draft, toy_model

PROMPTS = [torch.tensor([1, 2, 3]), torch.tensor([5]), torch.tensor([7, 7, 1, 2, 7, 7]), torch.tensor([5])]
SEED = 2**63 - 5
TARGET = toy_model(16, torch.Generator().manual_seed(0))
DRAFT = toy_draft(TARGET, torch.Generator().manual_seed(1))
PROPOSERS = {
    "autoregressive": lambda: None,
    "draft": lambda: ModelProposer(DRAFT),
    "ngram": NgramProposer,
    "composite": lambda: CompositeProposer(ModelProposer(DRAFT), NgramProposer()),
}


def decode(method, rows, streams):
    """24 tokens for each of these rows."""
    options = {"max_new_tokens": 24, "sampling": SamplingConfig(top_p=0.9), "generator": streams}
    prompts = [PROMPTS[row] for row in rows]
    if method == "autoregressive":
        return autoregressive_decode(TARGET, prompts, **options)
    return speculative_decode(TARGET, PROPOSERS[method](), prompts, num_draft_tokens=3, **options)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([WORD] * 4, [WORD] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, words):
    """The three vectors for philox4x32 with 10 rounds in kat_vectors of Random123."""
    keys = round_keys(torch.tensor(key)[:, None])
    found = philox(torch.tensor(counter)[:, None], keys, torch.tensor(MULTIPLIERS)[:, None])
    assert " ".join(f"{word:08x}" for word in found[:, 0].tolist()) == words


@pytest.mark.parametrize("company", [[0, 1, 2, 3], [2, 0], [3, 3, 1, 2, 0], [0], [1], [2], [3]])
@pytest.mark.parametrize("method", PROPOSERS)
def test_a_row_gets_the_same_tokens_in_any_company(method, company):
    """Alone, reordered, beside others: at temperature 1 as at 0. Rows 1 and 3 share a prompt, but no stream."""
    whole = decode(method, range(4), RowStreams(SEED, range(4))).tokens
    found = decode(method, company, RowStreams(SEED, company)).tokens
    assert [row.tolist() for row in found] == [whole[row].tolist() for row in company]
    assert whole[1].tolist() != whole[3].tolist()


def test_rows_without_names_are_numbered_by_their_place():
    """From an ordinary generator too: rows that come behind change nothing for those before."""
    few, many = (decode("draft", range(n), torch.Generator().manual_seed(3)).tokens for n in (2, 4))
    assert [row.tolist() for row in few] == [row.tolist() for row in many[:2]]


def test_two_calls_with_one_generator_are_independent():
    for generator in (torch.Generator().manual_seed(3), RowStreams(SEED, range(4))):
        first, second = (decode("draft", range(4), generator).tokens for _ in range(2))
        assert [row.tolist() for row in first] != [row.tolist() for row in second]


def test_a_stream_for_each_row_or_none():
    with pytest.raises(ValueError, match="2 streams for 3 prompts"):
        decode("draft", range(3), RowStreams(SEED, range(2)))


def test_how_numbers_are_taken_does_not_change_them():
    """One by one or at once, more than were expected, alone or beside others: a number is what its place says."""
    one_by_one, at_once = RowStreams(SEED, [4, 9]), RowStreams(SEED, [9])
    for _ in range(700):  # past what is made ahead
        singles = torch.cat([one_by_one.take(1) for _ in range(5)], dim=1)
        assert torch.equal(singles[1:], at_once.take(5))
        one_by_one.next_passage()
        at_once.next_passage()


@pytest.mark.parametrize("method", PROPOSERS)
def test_no_number_is_handed_out_twice(method):
    """Two of some thousand 53-bit numbers are equal by chance once in a billion runs; the seed is fixed."""

    class Noted(RowStreams):
        def take(self, count):
            seen.append(numbers := super().take(count))
            return numbers

    seen = []
    decode(method, range(4), Noted(SEED, range(4)))
    numbers = torch.cat([part.flatten() for part in seen])
    assert len(numbers) >= 4 * 24
    assert len(numbers.unique()) == len(numbers)


def neighbours(streams):
    """Numbers of row 0 with what stands beside them: the next of the passage, the next passage's, the next row's."""
    passages = []
    for _ in range(4000):
        passages.append(streams.take(2))
        streams.next_passage()
    numbers = torch.stack(passages)  # [passages, rows, 2]
    first = numbers[:, 0, 0]
    return {
        "place": (first, numbers[:, 0, 1]),
        "passage": (first[:-1], first[1:]),
        "row": (first, numbers[:, 1, 0]),
    }


def p_value_of_pairs(one, other):
    """Chi-square over 8 by 8 boxes of the unit square."""
    boxes = torch.bincount((one * 8).long() * 8 + (other * 8).long(), minlength=64)
    return stats.chisquare(boxes.tolist()).pvalue


@pytest.mark.parametrize("beside", ["place", "passage", "row"])
def test_neighbouring_numbers_fill_the_square(beside):
    """Sound numbers fail a level of 1e-6 for one seed in a million each, and the seed is fixed."""
    assert p_value_of_pairs(*neighbours(RowStreams(SEED, [0, 1]))[beside]) > 1e-6


def test_the_square_notices_two_rows_on_one_stream():
    """The known-bad twin: rows that share a stream draw alike."""
    assert p_value_of_pairs(*neighbours(RowStreams(SEED, [0, 0]))["row"]) < 1e-6


def test_other_generators_serve_all_rows_together():
    """What `verify` does with an ordinary generator, outside of decoding."""
    expected = torch.rand(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(uniforms(torch.zeros(3, 5), 2, torch.Generator().manual_seed(1)), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_the_same_numbers():
    assert torch.equal(RowStreams(SEED, [3, 8], "cuda").take(99).cpu(), RowStreams(SEED, [3, 8]).take(99))
