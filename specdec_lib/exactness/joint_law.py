"""The joint law of successive tokens against samples of it: a test with a guaranteed size and a stated power.

Claim. Of a real vocabulary the law follows the most likely tokens behind each text, by name; all others are told apart
only by the group of `GROUPS` that their id falls into, and end their sequence, for what may follow tens of thousands
of tokens is not affordable. The test is of the pairs of those outcomes. It says nothing about tokens that change places
within a group, nor about what follows a token out of a group: `JointTest.pooled` is the share of such mass.

Size. The statistic is the likelihood ratio G = 2 n KL(observed, expected), summed over prompts. The usual chi-square
p-values are approximations with no guarantee where a false alarm of one in a million is decided, far out in the tail
(Pearson's is wrong there by orders of magnitude). The bound of Agrawal (IEEE Trans. Inf. Theory 2020, arXiv 1904.02291)
holds for every sample size: the moment generating function of G / 2 is at most that of a gamma variable with
`degrees_of_freedom` as its shape, hence P(G / 2 >= x) <= exp(-x) (e x / shape) ** shape. Holm's procedure then keeps
the chance of any false alarm among all tests of a battery below `FALSE_ALARM`, however the tests depend on each other.

Power. A sampler whose law of the cells lies at total-variation distance e from the target's has KL >= 2 e**2
(Pinsker), with equality in the limit for a bias that is spread evenly over half of the mass. So G has at least the
noncentrality 4 n e**2, which is effect size w = 2 e in `GofChisquarePower`: `detectable_bias` is the e that is caught
with probability `POWER`, however it is spread over the cells. The noncentral chi-square law of G under a bias is an
approximation; tests/test_exactness_law.py simulates it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import GofChisquarePower

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.sampling import probabilities
from specdec_lib.exactness.enumeration import Law
from specdec_lib.models.runner import LanguageModel

FALSE_ALARM = 1e-6  # the chance that any test of a battery rejects a sound sampler
POWER = 0.999  # the chance that a bias of the size stated is caught
LEAST_EXPECTED = 5.0  # pairs expected less often than this are pooled, which loses less power than it saves
GROUPS = 16  # of the tokens that a law does not follow; -1 to -16 stand for them
LAW_ROWS = 96  # continuations in one pass of a real vocabulary

Sampler = Callable[[Sequence[torch.Tensor], int, int], Sequence[torch.Tensor]]
"""Anyone's sampler: (prompts, n, seed) to one int64 tensor `[n, length]` of new tokens for each prompt."""


@dataclass(frozen=True)
class JointTest:
    """A test of the pairs of tokens at one position, all prompts together.

    Attributes:
        statistic: G, infinite if an impossible pair was seen.
        degrees_of_freedom: cells less one, summed over prompts.
        p_value: an upper bound of the chance of so large a G; valid for every sample size. It decides.
        usual_p_value: by the chi-square approximation, as information.
        samples: pairs counted, over all prompts.
        pooled: the share of the target's mass of which the test sees only sums: groups of tokens, whatever lies behind
            one, and pairs too rare for a cell of their own.
    """

    statistic: float
    degrees_of_freedom: int
    p_value: float
    usual_p_value: float
    samples: int
    pooled: float


def target_law(
    target: LanguageModel, prompt: torch.Tensor, sampling: SamplingConfig, num_tokens: int, width: int = 0
) -> Law:
    """The exact law of the next `num_tokens` tokens, by running the continuations that `sampling` leaves possible.

    Every pass starts from an empty cache and runs the layers as they are written, not as `torch.compile` made them, so
    nothing is shared with the decoding that is tested. (Kernels stay: in bfloat16 the law is that of their rounding.)

    Args:
        width: follow only that many of the most likely tokens at each position; the others are summed by `group_of`,
            and end their sequence. 0 follows all: the cost grows as (possible tokens) ** (num_tokens - 1).
    """
    law: Law = {(): 1.0}
    for _ in range(num_tokens):
        opened = [prefix for prefix in law if not _ends_in_group(prefix)]
        texts = torch.stack([torch.cat([prompt, torch.tensor(prefix, dtype=torch.int64)]) for prefix in opened])
        longer = {prefix: mass for prefix, mass in law.items() if _ends_in_group(prefix)}
        for prefix, row in zip(opened, _next_token_probs(target, texts, sampling), strict=True):
            possible = int((row > 0).sum())
            listed = row.topk(min(width or possible, possible))
            for token, mass in zip(listed.indices.tolist(), listed.values.tolist(), strict=True):
                longer[(*prefix, token)] = law[prefix] * mass
            others = _group_masses(row.index_fill(0, listed.indices, 0.0))
            longer |= {(*prefix, group): law[prefix] * mass for group, mass in others.items() if mass > 0}
        law = longer
    return law


def _group_masses(probs: torch.Tensor) -> dict[int, float]:  # [V]
    masses = torch.zeros(GROUPS, dtype=probs.dtype).index_add_(0, -1 - _groups(len(probs)), probs)
    return {-1 - index: mass for index, mass in enumerate(masses.tolist())}


@functools.cache
def _groups(vocab_size: int) -> torch.Tensor:  # [V]
    return torch.tensor([group_of(token) for token in range(vocab_size)])


def group_of(token: int) -> int:
    """The group of a token that is not followed, -`GROUPS` to -1: fixed, as good as random (MurmurHash3's mixer)."""
    mixed = token ^ token >> 16
    for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):
        mixed = mixed * factor & 0xFFFFFFFF
        mixed ^= mixed >> shift
    return -1 - mixed % GROUPS


def _ends_in_group(outcome: tuple[int, ...]) -> bool:
    return bool(outcome) and outcome[-1] < 0


@torch.inference_mode()
def _next_token_probs(target: LanguageModel, texts: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    rows = []
    with target.uncompiled():
        for part in texts.split(LAW_ROWS):
            step = target.forward(part.to(target.device), target.new_cache(*part.shape))
            rows.append(probabilities(target.logits(step.hidden[:, -1]), sampling).double().cpu())
    return torch.cat(rows)


def count_outcomes(sequences: Iterable[Sequence[int]], law: Law) -> Counter[tuple[int, ...]]:
    """Count sequences as the outcomes of `law`: a token that it does not follow becomes its group, and ends them."""
    followed = {outcome[:length] for outcome in law for length in range(len(outcome) + 1)}
    counts: Counter[tuple[int, ...]] = Counter()
    for sequence, times in Counter(map(tuple, sequences)).items():
        length = next((i for i in range(len(sequence)) if sequence[: i + 1] not in followed), len(sequence))
        counts[(*sequence[:length], *map(group_of, sequence[length : length + 1]))] += times
    return counts


def pairs_at(weights: Mapping[tuple[int, ...], float], position: int) -> Law:
    """Laws or counts of whole sequences, summed to those of the pair that begins at `position`.

    Nothing is known behind a group: it stands alone as the first of a pair, and `()` for all that ended before.
    """
    summed: Law = {}
    for outcome, weight in weights.items():
        pair = outcome[position : position + 2]
        summed[pair] = summed.get(pair, 0.0) + weight
    return summed


def joint_test(counts: Sequence[Mapping[tuple[int, ...], float]], laws: Sequence[Law]) -> JointTest:
    """Likelihood-ratio test of the counts of each prompt against its law, all prompts together."""
    statistic, degrees, pooled = 0.0, 0, 0.0
    total = sum(sum(seen.values()) for seen in counts)
    for seen, law in zip(counts, laws, strict=True):
        samples, whole = sum(seen.values()), sum(law.values())
        cells = _cells(law, samples)
        observed, expected = dict.fromkeys(cells.values(), 0.0), dict.fromkeys(cells.values(), 0.0)
        for outcome, cell in cells.items():
            observed[cell] += seen.get(outcome, 0)
            expected[cell] += law[outcome] * samples
            if cell != outcome or not outcome or _ends_in_group(outcome):
                pooled += law[outcome] * samples / (total * whole)
        if any(seen[outcome] and law.get(outcome, 0.0) == 0 for outcome in seen):
            statistic = np.inf
        if len(observed) > 1 and np.isfinite(statistic):
            found, due = np.array(list(observed.values())), np.array(list(expected.values()))
            due *= found.sum() / due.sum()
            statistic += float(stats.power_divergence(found, due, lambda_="log-likelihood").statistic)
        degrees += len(observed) - 1
    usual = float(stats.chi2.sf(statistic, degrees)) if degrees else 1.0
    return JointTest(statistic, degrees, p_value_bound(statistic, degrees), usual, int(total), pooled)


def _cells(law: Law, samples: float) -> dict[tuple[int, ...], Hashable]:
    """The cell that each possible outcome is counted in: its own where that is expected often enough.

    Rare outcomes share one with the rare ones of the same first token; what is rare even so shares one with all such.
    """
    cells: dict[tuple[int, ...], Hashable] = {outcome: outcome for outcome, mass in law.items() if mass > 0}
    for first in (1, 0):
        expected = dict.fromkeys(cells.values(), 0.0)
        for outcome, cell in cells.items():
            expected[cell] += law[outcome] * samples
        cells |= {o: ("rare", o[:first]) for o, cell in cells.items() if expected[cell] < LEAST_EXPECTED}
    return cells


def p_value_bound(statistic: float, degrees_of_freedom: int) -> float:
    """Upper bound of P(G >= statistic) under the target's law (Agrawal 2020, Theorem 1.2); 1 where it says nothing."""
    half, shape = statistic / 2, degrees_of_freedom
    if half == np.inf:
        return 0.0
    return float(np.exp(shape - half + shape * np.log(half / shape))) if half > shape > 0 else 1.0


def detectable_bias(samples: int, degrees_of_freedom: int, level: float) -> float:
    """The smallest total-variation bias that a test at `level` catches with probability `POWER`; 1 if none is.

    Args:
        samples: over all prompts. The bias is then the mean over prompts.
        level: of the single test: under Holm, at worst `FALSE_ALARM` / number of tests.
    """
    if degrees_of_freedom == 0:
        return 1.0
    bound = optimize.brentq(
        lambda g: np.log(max(p_value_bound(g, degrees_of_freedom), 1e-300)) - np.log(level),
        2.0 * degrees_of_freedom,
        20.0 * degrees_of_freedom + 400.0,
    )
    power = GofChisquarePower()
    nominal = stats.chi2.sf(bound, degrees_of_freedom)  # the level at which a chi-square test has the same threshold

    def missing(effect_size: float) -> float:
        return float(power.power(effect_size, samples, nominal, degrees_of_freedom + 1)) - POWER

    return optimize.brentq(missing, 1e-6, 2.0) / 2 if missing(2.0) > 0 else 1.0


def put_to_test(
    sample: Sampler,
    target: LanguageModel,
    prompts: Sequence[torch.Tensor],
    *,
    sampling: SamplingConfig,
    length: int,
    samples: int,
    seed: int,
    width: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put anyone's sampler to the test: the joint law of each two successive tokens of its first `length` ones.

    With a `width` that is the law of the pairs of outcomes that the head of this module describes, and of no more.

    Args:
        sample: continues each prompt; see `Sampler`.
        samples: continuations of each prompt.
        width: see `target_law`.

    Returns:
        a line per position (the fields of `JointTest`), and a line per position, prompt and pair of tokens (observed
        and expected count).

    Raises:
        ValueError: the sampler returned something of another shape.
    """
    laws = [target_law(target, prompt, sampling, length, width) for prompt in prompts]
    drawn = sample(prompts, samples, seed)
    if [tuple(tokens.shape) for tokens in drawn] != [(samples, length)] * len(prompts):
        shapes = [tuple(tokens.shape) for tokens in drawn]
        raise ValueError(f"the sampler returned {shapes}: give {samples} rows of {length} tokens for each prompt")
    counts = [count_outcomes(tokens.tolist(), law) for tokens, law in zip(drawn, laws, strict=True)]
    tests, cells = [], []
    for position in range(length - 1):
        seen = [pairs_at(count, position) for count in counts]
        expected = [pairs_at(law, position) for law in laws]
        tests.append({"position": position} | vars(joint_test(seen, expected)))
        for prompt, (one, law) in enumerate(zip(seen, expected, strict=True)):
            cells += [
                {"position": position, "prompt": prompt, "tokens": pair}
                | {"observed": int(one.get(pair, 0)), "expected": law.get(pair, 0.0) * samples}
                for pair in sorted(law.keys() | one.keys())
            ]
    return pd.DataFrame(tests), pd.DataFrame(cells)


def decide(tests: pd.DataFrame) -> pd.DataFrame:
    """Holm's decision over all tests of a battery, and what each would have caught.

    Adds to the lines of `put_to_test`: rejected, and detectable_bias at the strictest level that Holm's procedure
    can ask of a test.
    """
    rejected = multipletests(tests["p_value"].clip(lower=np.finfo(np.float64).tiny), FALSE_ALARM, method="holm")[0]
    level = FALSE_ALARM / len(tests)
    bias = [detectable_bias(line.samples, line.degrees_of_freedom, level) for line in tests.itertuples()]
    return tests.assign(rejected=rejected, detectable_bias=bias)
