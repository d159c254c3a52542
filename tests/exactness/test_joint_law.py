"""The test of a joint law: its size is a bound and not an approximation, its power is what it says."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.exactness import joint_law as law_of
from specdec_lib.exactness import target_law as laws
from specdec_lib.exactness.mutants import without_residual
from specdec_lib.exactness.subjects.in_process import engine_sampler
from specdec_lib.models.toy import toy_draft, toy_model

PROMPTS = [torch.tensor([5]), torch.tensor([7, 7, 1, 2])]
LEVEL = 1e-8


@pytest.fixture(scope="module")
def target():
    return toy_model(8, torch.Generator().manual_seed(0))


def test_the_law_of_a_toy_is_its_table(target):
    law = laws.target_law(target, torch.tensor([3, 5]), SamplingConfig(), 2)
    table = torch.softmax(target.model.table.double(), dim=-1)
    assert law[(4, 6)] == pytest.approx(float(table[3, 5, 4] * table[5, 4, 6]), rel=1e-5)
    assert sum(law.values()) == pytest.approx(1, abs=1e-5)


def test_a_narrow_law_sums_what_it_does_not_follow(target):
    prompt = torch.tensor([3, 5])
    whole, narrow = (laws.target_law(target, prompt, SamplingConfig(), 3, width) for width in (0, 2))
    assert sum(laws.group_of(9) in outcome for outcome in narrow) <= 2**2 + 2 + 1  # the last of its sequence
    assert laws.count_outcomes([(9, 9, 9)], narrow) == Counter({(laws.group_of(9),): 1})
    summed = Counter()
    for sequence, mass in whole.items():
        (outcome,) = laws.count_outcomes([sequence], narrow)
        summed[outcome] += mass
    assert dict(summed) == pytest.approx(narrow, abs=1e-5)


def test_the_groups_are_a_fixed_partition_without_pattern():
    """Chance puts 3,072 of 49,152 ids into each of 16 groups, give or take 54; five times that bounds all."""
    groups = [laws.group_of(token) for token in range(49_152)]
    assert groups[:6] == [-1, -8, -7, -8, -6, -14]
    sizes = Counter(groups)
    assert set(sizes) == set(range(-laws.GROUPS, 0))
    assert max(abs(size - 3072) for size in sizes.values()) < 270
    alike = [sum(one == other for one, other in zip(groups, groups[by:], strict=False)) for by in range(1, 100)]
    assert max(alike) < 3072 + 330  # six standard deviations: ids at any distance share a group no more than by chance


def test_what_follows_a_group_is_one_outcome():
    weights = {(0, 1, 2): 0.5, (0, -3): 0.1, (0, -7): 0.1, (-3,): 0.3}
    assert law_of.pairs_at(weights, 0) == pytest.approx({(0, 1): 0.5, (0, -3): 0.1, (0, -7): 0.1, (-3,): 0.3})
    assert law_of.pairs_at(weights, 1) == pytest.approx({(1, 2): 0.5, (-3,): 0.1, (-7,): 0.1, (): 0.3})


def test_all_that_is_seen_only_in_sums_counts_as_pooled():
    law = law_of.pairs_at({(0, 1, 2): 0.5, (0, -3): 0.1, (0, -7): 0.1, (-3,): 0.3}, 1)
    counts = Counter({outcome: round(1000 * mass) for outcome, mass in law.items()})
    test = law_of.joint_test([counts], [law])
    assert (test.degrees_of_freedom, test.pooled) == (3, pytest.approx(0.5))


def test_the_p_value_bounds_the_exact_one():
    """For two outcomes the exact chance of so large a statistic is a sum of binomial probabilities."""
    n, share = 200, 0.03
    counts = np.arange(n + 1)
    observed = np.stack([counts, n - counts], axis=1)
    expected = np.array([n * share, n * (1 - share)])
    statistics = stats.power_divergence(observed, expected, axis=1, lambda_="log-likelihood").statistic
    chances = stats.binom.pmf(counts, n, share)
    for statistic in statistics:
        exact = chances[statistics >= statistic - 1e-9].sum()
        assert exact <= law_of.p_value_bound(statistic, 1) + 1e-12
    pearson = stats.chisquare([30, 170], expected).pvalue  # 30 where 6 are expected: the usual test is far too sure
    assert pearson < 1e-9 * chances[30:].sum()


def test_monte_carlo_agrees_that_the_bound_is_no_smaller():
    """The Monte-Carlo p-value of 2,000 resamples exceeds its bound with a chance far below 1e-6; the seed is fixed."""
    expected = np.array([40.0, 30, 20, 10])
    observed = np.array([25.0, 30, 25, 20])

    def statistic(counts, axis=-1):
        return stats.power_divergence(counts, expected, axis=axis, lambda_="log-likelihood").statistic

    def draws(size):
        return np.random.default_rng(0).multinomial(100, expected / 100, size=size[:-1] if len(size) > 1 else None)

    sampled = stats.monte_carlo_test(observed, draws, statistic, n_resamples=2000, alternative="greater")
    assert sampled.pvalue < law_of.p_value_bound(statistic(observed), 3)


@pytest.mark.parametrize(("degrees", "samples"), [(15, 4000), (150, 8000)])
@pytest.mark.parametrize("shape", ["half of the mass", "one outcome"])
def test_a_bias_of_the_detectable_size_is_detected(degrees, samples, shape):
    """4,000 simulated batteries: at power 0.999 fewer than 3,970 detections have a chance below 1e-12."""
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(degrees + 1, 2.0))
    bias = law_of.detectable_bias(samples, degrees, LEVEL)
    up = law.cumsum() < 0.5 if shape == "half of the mass" else np.arange(len(law)) == law.argmin()
    mass = law[up].sum()
    biased = np.where(up, law * (1 + bias / mass), law * (1 - bias / (1 - mass)))
    assert abs(biased - law).sum() / 2 == pytest.approx(bias)
    counts = rng.multinomial(samples, biased, size=4000)
    statistics = stats.power_divergence(counts, samples * law, axis=1, lambda_="log-likelihood").statistic
    assert sum(law_of.p_value_bound(statistic, degrees) < LEVEL for statistic in statistics) >= 3970


def test_more_samples_detect_less():
    biases = [law_of.detectable_bias(n, 15, LEVEL) for n in (100, 10_000, 1_000_000)]
    assert biases == sorted(biases, reverse=True)
    assert biases[1] / biases[2] == pytest.approx(10, rel=0.01)
    assert law_of.detectable_bias(10, 15, LEVEL) == 1
    assert law_of.detectable_bias(100, 0, LEVEL) == 1


def test_an_impossible_pair_fails_at_once():
    test = law_of.joint_test([Counter({(1,): 99, (2,): 1})], [{(1,): 1.0}])
    assert (test.statistic, test.p_value) == (np.inf, 0)


def test_a_single_outcome_tests_nothing():
    assert law_of.joint_test([Counter({(1,): 99})], [{(1,): 1.0}]).p_value == 1


def test_rare_pairs_are_pooled():
    law = {(0,): 0.5, (1,): 0.499, (2,): 0.0005, (3,): 0.0005}
    test = law_of.joint_test([Counter({(0,): 500, (1,): 500})], [law])
    assert test.degrees_of_freedom == 2
    assert test.pooled == pytest.approx(0.001)


def test_rare_pairs_are_pooled_with_those_of_the_same_first_token():
    rare = {(first, second): 0.003 for first in (1, 2) for second in range(2)}
    law = {(0, 0): 0.987, **rare, (3, 0): 0.0005, (4, 0): 0.0005}
    counts = Counter({outcome: 1000 * mass for outcome, mass in law.items()})
    assert law_of.joint_test([counts], [law]).degrees_of_freedom == 3  # (0, 0); behind 1; behind 2; the others


def engine(target, proposer, verification="token", sampling=None):
    sampling = sampling or SamplingConfig()
    options = {"num_draft_tokens": 2, "sampling": sampling, "length": 4, "batch_size": 2000}
    return engine_sampler(target, proposer, verification=verification, **options)


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(0.7, 3), SamplingConfig(1.3, 0, 0.8)], ids=str)
@pytest.mark.parametrize("method", ["draft", "ngram"])
def test_sound_samplers_follow_the_joint_law(target, method, sampling):
    """A sound sampler fails with a chance of at most 1e-6; the seed is fixed."""
    draft = toy_draft(target, torch.Generator().manual_seed(1))
    proposer = ModelProposer(draft) if method == "draft" else NgramProposer()
    sample = engine(target, proposer, sampling=sampling)
    tests, cells = law_of.put_to_test(
        sample, target, PROMPTS, sampling=sampling, length=4, samples=3000, seed=0, width=4
    )
    assert not law_of.decide(tests)["rejected"].any()
    assert cells.groupby(["position", "prompt"])["observed"].sum().eq(3000).all()


def test_a_wrong_sampler_is_rejected_and_one_of_another_shape_refused(target):
    draft = toy_draft(target, torch.Generator().manual_seed(1))
    sample = engine(target, ModelProposer(draft), without_residual)
    tests, _ = law_of.put_to_test(sample, target, PROMPTS, sampling=SamplingConfig(), length=4, samples=3000, seed=0)
    assert law_of.decide(tests)["rejected"].any()
    with pytest.raises(ValueError, match="give 3000 rows of 3 tokens"):
        law_of.put_to_test(sample, target, PROMPTS, sampling=SamplingConfig(), length=3, samples=3000, seed=0)


def test_one_token_in_the_place_of_all_unlikely_ones_is_rejected(monkeypatch):
    """The known-bad twin of a law that follows few tokens: the four most likely have their exact law, all others are
    replaced by a fixed one. Were the others one outcome, it would pass with any number of samples.

    A sound sampler fails with a chance of at most 1e-6; the seed is fixed.
    """
    sampling, length, width = SamplingConfig(), 3, 4
    target = toy_model(64, torch.Generator().manual_seed(0))
    draft = toy_draft(target, torch.Generator().manual_seed(1))
    options = {"num_draft_tokens": 2, "sampling": sampling, "length": length, "batch_size": 2000}
    sound = engine_sampler(target, ModelProposer(draft), **options)

    def twin(prompts, n, seed):
        drawn = sound(prompts, n, seed)
        for prompt, rows in zip(prompts, drawn, strict=True):
            law = laws.target_law(target, prompt, sampling, length, width)
            followed = {outcome[:end] for outcome in law for end in range(length + 1)}
            for row in rows:
                ends = (end for end in range(length) if (*row[: end + 1].tolist(),) not in followed)
                row[next(ends, length) :] = 63
        return drawn

    def rejected(sample):
        settings = {"sampling": sampling, "length": length, "samples": 3000, "seed": 0, "width": width}
        tests, _ = law_of.put_to_test(sample, target, PROMPTS, **settings)
        return law_of.decide(tests)["rejected"].any()

    assert rejected(twin)
    assert not rejected(sound)
    monkeypatch.setattr(laws, "group_of", lambda token: -1)  # what a single outcome for all of them would see
    monkeypatch.setattr(laws, "_groups", lambda vocab_size: torch.full((vocab_size,), -1))
    assert not rejected(twin)
