"""Logits to probabilities to a token."""

import pytest
import torch
from scipy import stats

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.sampling import invert, probabilities

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def test_greedy_is_an_exact_one_hot():
    assert probabilities(LOGITS, SamplingConfig(temperature=0)).tolist() == [1, 0, 0, 0]


def test_temperature_divides_the_logits():
    probs = probabilities(LOGITS, SamplingConfig(temperature=2.0))
    assert torch.allclose(probs, torch.softmax(LOGITS / 2, dim=-1))


def test_top_k_keeps_the_most_likely():
    probs = probabilities(LOGITS, SamplingConfig(top_k=2))
    assert (probs > 0).tolist() == [True, True, False, False]
    assert probs.sum().item() == pytest.approx(1)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    kept = probabilities(probs.log(), SamplingConfig(top_p=0.7))
    assert torch.allclose(kept, torch.tensor([0.625, 0.375, 0, 0]))


def test_top_p_always_keeps_one_token():
    assert probabilities(LOGITS, SamplingConfig(top_p=1e-6)).tolist() == [1, 0, 0, 0]


def test_logits_are_left_alone_and_probabilities_are_float32():
    logits = LOGITS.to(torch.bfloat16)
    before = logits.clone()
    probs = probabilities(logits, SamplingConfig(temperature=0.5, top_k=2, top_p=0.9))
    assert torch.equal(logits, before)
    assert probs.dtype == torch.float32


@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_reaches_all_of_its_row(temperature):
    probs = probabilities(torch.tensor([1.0, float("nan"), 0.0]), SamplingConfig(temperature=temperature))
    assert probs.isnan().all()


def test_draws_follow_the_distribution():
    """Chi-square at 1e-6: a sound sampler fails once in a million seeds, and the seed is fixed."""
    probs = torch.tensor([0.1, 0.6, 0.0, 0.3])
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(invert(probs.expand(20_000, 4), uniforms), minlength=4)
    assert counts[2] == 0
    _, p_value = stats.chisquare(counts[[0, 1, 3]], [2_000, 12_000, 6_000])
    assert p_value > 1e-6


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"give"):
        SamplingConfig(**bad)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_takes_the_same_tokens_however_it_finds_them(top_p, monkeypatch):
    """Among the likeliest tokens or by sorting all, ties included: a row does not depend on the rows beside it."""
    logits = (torch.randn(6, 5000, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()  # many equal ones
    logits[0] = 0  # flat: no number of likeliest tokens will do
    sampling = SamplingConfig(top_p=top_p)
    alone = torch.cat([probabilities(row[None], sampling) for row in logits])
    together = probabilities(logits, sampling)
    monkeypatch.setattr("specdec_lib.decoding.sampling.NUCLEUS_CANDIDATES", 10**9)
    assert torch.equal(alone, together)
    assert torch.equal(probabilities(logits, sampling), together)
