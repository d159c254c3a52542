"""The table of random numbers: one stream for each row, and no number twice."""

import pytest
import torch
from scipy import stats

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.composite import CompositeProposer
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.decoding.uniforms import seeded_table
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


def decode(method, rows, generator=None, **more):
    """24 tokens for each of these rows, each under its own number."""
    generator = generator or torch.Generator().manual_seed(SEED)
    options = {"max_new_tokens": 24, "sampling": SamplingConfig(top_p=0.9), "generator": generator} | more
    prompts = [PROMPTS[row] for row in rows]
    if method == "autoregressive":
        return autoregressive_decode(TARGET, prompts, **options)
    return speculative_decode(TARGET, PROPOSERS[method](), prompts, num_draft_tokens=3, **options)


@pytest.mark.parametrize("method", PROPOSERS)
def test_a_row_gets_the_same_tokens_in_any_batch(method):
    """Alone, reordered, next to others: at temperature 1 as at 0. Rows 1 and 3 share a prompt, but no numbers."""
    whole = [row.tolist() for row in decode(method, range(4)).tokens]
    for batch in ([0, 1, 2, 3], [2, 0], [3, 3, 1, 2, 0], [0], [1], [2], [3]):
        found = decode(method, batch, row_numbers=batch).tokens
        assert [row.tolist() for row in found] == [whole[row] for row in batch], batch
    assert whole[1] != whole[3]


def test_further_rows_change_nothing_for_those_before():
    few, many = (decode("draft", range(n)).tokens for n in (2, 4))
    assert [row.tolist() for row in few] == [row.tolist() for row in many[:2]]


def test_two_calls_with_one_generator_are_independent():
    generator = torch.Generator().manual_seed(3)
    first, second = (decode("draft", range(4), generator).tokens for _ in range(2))
    assert [row.tolist() for row in first] != [row.tolist() for row in second]


def test_a_row_number_decides_the_row_of_the_table_and_longer_calls_begin_alike():
    table = seeded_table(SEED, [4, 9], draws=11, width=3)
    assert (table.shape, table.dtype) == ((2, 11, 3), torch.float64)
    assert torch.equal(seeded_table(SEED, [9], draws=20, width=3)[:, :11], table[1:])


def test_a_table_of_ones_own_takes_the_place_of_a_generator():
    table = seeded_table(7, range(4), draws=1 + 2 * 23, width=4)
    first, second = (decode("draft", range(4), uniforms=table).tokens for _ in range(2))
    assert [row.tolist() for row in first] == [row.tolist() for row in second]


def test_no_number_of_a_table_stands_in_it_twice():
    """Two of a hundred thousand 53-bit numbers are equal by chance once in a million runs; the seed is fixed."""
    table = seeded_table(SEED, range(100), draws=200, width=5)
    assert len(table.unique()) == table.numel()


def neighbours(table):  # [2, draws, 2]
    """Numbers of row 0 with the next of the draw, the next draw's and the next row's."""
    first = table[0, :, 0]
    return {"place": (first, table[0, :, 1]), "draw": (first[:-1], first[1:]), "row": (first, table[1, :, 0])}


def p_value_of_pairs(one, other):
    """Chi-square over 8 by 8 boxes of the unit square."""
    boxes = torch.bincount((one * 8).long() * 8 + (other * 8).long(), minlength=64)
    return stats.chisquare(boxes.tolist()).pvalue


@pytest.mark.parametrize("other", ["place", "draw", "row"])
def test_neighbouring_numbers_fill_the_square(other):
    """Sound numbers fail a level of 1e-6 for one seed in a million each, and the seed is fixed."""
    assert p_value_of_pairs(*neighbours(seeded_table(SEED, [0, 1], 4000, 2))[other]) > 1e-6


def test_the_square_notices_two_rows_with_one_number():
    """The known-bad twin: rows that share a number draw alike."""
    assert p_value_of_pairs(*neighbours(seeded_table(SEED, [0, 0], 4000, 2))["row"]) < 1e-6
