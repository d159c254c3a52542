"""The test of sampled tokens against the target's law: of each two successive tokens, with a bound on false alarms.

Claim. The test is of pairs of outcomes, as `target_law` tells them apart. It does not see tokens that change places
within a group, nor what follows a token out of a group: `JointTest.pooled` is the share of such mass.

Size. The statistic is the likelihood ratio G = 2 n KL(observed, expected), summed over prompts. Chi-square p-values are
wrong by orders of magnitude where a false alarm of one in a million is decided. The bound of Agrawal (IEEE Trans. Inf.
Theory 2020, arXiv 1904.02291) holds for every sample size: P(G / 2 >= x) <= exp(-x) (e x / d) ** d for d degrees of
freedom. Holm's procedure keeps the chance of any false alarm in a battery below `FALSE_ALARM`, however the tests depend
on each other.

Power. At total-variation distance e of the cells' laws KL is at least 2 e**2 (Pinsker), so G has at least the
noncentrality 4 n e**2. `detectable_bias` is the e that is detected with probability `POWER`, however it is spread over
the cells. The noncentral chi-square law of G is an approximation; tests/exactness/test_joint_law.py simulates it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import optimize, stats

from specdec_lib.config import SamplingConfig
from specdec_lib.exactness.certificate import FALSE_ALARM, POWER
from specdec_lib.exactness.target_law import Law, count_outcomes, ends_in_group, target_law
from specdec_lib.models.runner import LanguageModel

LEAST_EXPECTED = 5.0  # pairs expected less often than this are pooled, which loses less power than it saves

Sampler = Callable[[Sequence[torch.Tensor], int, int], Sequence[torch.Tensor]]
"""Anyone's sampler: (prompts, n, seed) to one int64 tensor `[n, length]` of new tokens for each prompt."""


@dataclass(frozen=True)
class JointTest:
    """A test of the pairs of tokens at one position, all prompts together."""

    statistic: float  # G, infinite if an impossible pair was seen
    degrees_of_freedom: int  # cells less one, summed over prompts
    p_value: float  # an upper bound of the chance of so large a G; valid for every sample size. It decides
    usual_p_value: float  # by the chi-square approximation, for information
    samples: int  # pairs counted, over all prompts
    pooled: float  # share of the target's mass in groups, whatever follows one, and pairs too rare for their own cell


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
    laws: Sequence[Law] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put anyone's sampler to the test: the joint law of each two successive tokens of its first `length` ones.

    Args:
        samples: continuations of each prompt.
        width: see `target_law`: the claim is of the outcomes that such a law tells apart.
        laws: of the prompts, if they are known.

    Returns:
        a line per position (the fields of `JointTest`), and a line per position, prompt and cell (observed and
        expected count). ValueError if the sampler returned something of another shape.
    """
    laws = laws or [target_law(target, prompt, sampling, length, width) for prompt in prompts]
    drawn = sample(prompts, samples, seed)
    shapes = [tuple(tokens.shape) for tokens in drawn]
    if shapes != [(samples, length)] * len(prompts):
        raise ValueError(f"the sampler returned {shapes}: give {samples} rows of {length} tokens for each prompt")
    counts = [count_outcomes(tokens.tolist(), law) for tokens, law in zip(drawn, laws, strict=True)]
    tests, cells = [], []
    for position in range(length - 1):
        seen = [pairs_at(count, position) for count in counts]
        expected = [pairs_at(law, position) for law in laws]
        tests.append({"position": position} | vars(joint_test(seen, expected)))
        for prompt, (one, law) in enumerate(zip(seen, expected, strict=True)):
            cells += [
                {"position": position, "prompt": prompt, "cell": _cell_name(cell)}
                | {"observed": int(found), "expected": float(f"{due:.6g}")}
                for cell, (found, due) in cell_counts(one, law).items()
            ]
    return pd.DataFrame(tests), pd.DataFrame(cells)


def pairs_at(weights: Mapping[tuple[int, ...], float], position: int) -> Law:
    """Laws or counts of whole sequences, summed to those of the pair that begins at `position`.

    Nothing is known after a group: it stands alone as the first of a pair, and `()` for all that ended before.
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
        samples = sum(seen.values())
        in_sums = [mass for o, mass in law.items() if _cells(law, samples).get(o) != o or not o or ends_in_group(o)]
        pooled += sum(in_sums) / sum(law.values()) * samples / total
        found, due = np.array(list(cell_counts(seen, law).values())).T
        possible = due > 0
        if found[~possible].any():
            statistic = np.inf
        elif possible.sum() > 1:
            due = due[possible] * found.sum() / due.sum()
            statistic += float(stats.power_divergence(found[possible], due, lambda_="log-likelihood").statistic)
        degrees += int(possible.sum()) - 1
    usual = float(stats.chi2.sf(statistic, degrees)) if degrees else 1.0
    return JointTest(statistic, degrees, p_value_bound(statistic, degrees), usual, int(total), pooled)


def cell_counts(seen: Mapping[tuple[int, ...], float], law: Law) -> dict[Hashable, tuple[float, float]]:
    """Observed and expected count of each cell of a test; 0 is expected of what is impossible but was seen."""
    samples, counts = sum(seen.values()), dict[Hashable, tuple[float, float]]()
    cells = _cells(law, samples)
    for outcome in [*cells, *(outcome for outcome in seen if outcome not in cells and seen[outcome])]:
        found, due = counts.get(cells.get(outcome, outcome), (0.0, 0.0))
        more = seen.get(outcome, 0), law.get(outcome, 0.0) * samples
        counts[cells.get(outcome, outcome)] = found + more[0], due + more[1]
    return counts


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


def _cell_name(cell: Hashable) -> str:
    """As text: token ids, `g` and the number of a group, `rare` for pairs that are counted together."""
    assert isinstance(cell, tuple)
    tokens, last = (cell[1], ["rare"]) if cell[:1] == ("rare",) else (cell, [])
    return " ".join([*(f"g{-token}" if token < 0 else str(token) for token in tokens), *last]) or "ended"


def p_value_bound(statistic: float, degrees_of_freedom: int) -> float:
    """Upper bound of P(G >= statistic) under the target's law (Agrawal 2020, Theorem 1.2); 1 where it says nothing."""
    return float(np.exp(_log_bound(statistic, degrees_of_freedom)))


def _log_bound(statistic: float, degrees_of_freedom: int) -> float:
    half, shape = statistic / 2, degrees_of_freedom
    if half == np.inf:
        return -np.inf
    return float(shape - half + shape * np.log(half / shape)) if half > shape > 0 else 0.0


def detectable_bias(samples: int, degrees_of_freedom: int, level: float) -> float:
    """The smallest total-variation bias that a test at `level` detects with probability `POWER`; 1 if none is.

    Args:
        samples: over all prompts. The bias is then the mean over prompts.
        level: of the single test: under Holm, at worst `FALSE_ALARM` / number of tests.
    """
    if degrees_of_freedom == 0:
        return 1.0
    bracket = 2.0 * degrees_of_freedom, 20.0 * degrees_of_freedom + 400.0
    threshold = optimize.brentq(lambda g: _log_bound(g, degrees_of_freedom) - np.log(level), *bracket)

    def missing(bias: float) -> float:
        return float(stats.ncx2.sf(threshold, degrees_of_freedom, 4 * samples * bias**2)) - POWER

    return float(optimize.brentq(missing, 1e-6, 1.0)) if missing(1.0) > 0 else 1.0


def decide(tests: pd.DataFrame) -> pd.DataFrame:
    """Holm's decision over all tests of a battery, and what each would have detected.

    Adds to the lines of `put_to_test`: rejected, and detectable_bias at the strictest level that Holm's procedure
    can ask of a test.
    """
    from statsmodels.stats.multitest import multipletests  # large, and nothing else here needs it

    rejected = multipletests(tests["p_value"].clip(lower=np.finfo(np.float64).tiny), FALSE_ALARM, method="holm")[0]
    level = FALSE_ALARM / len(tests)
    bias = [detectable_bias(line.samples, line.degrees_of_freedom, level) for line in tests.itertuples()]
    return tests.assign(rejected=rejected, detectable_bias=bias)
