"""Intervals: of a geometric mean over prompts by a BCa bootstrap, and of a median by order statistics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
LEAST_VALUES = 5  # fewer have too few distinct resamples for an interval
RESAMPLES = 9_999


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval and the number of prompts behind it; NaN is undefined."""

    value: float
    low: float
    high: float
    count: int


def geometric_mean(ratios: Sequence[float] | np.ndarray | pd.Series, rng: np.random.Generator) -> Estimate:
    """Geometric mean of one ratio per prompt with a 95 % BCa bootstrap interval over prompts (Efron 1987).

    With few prompts it is too narrow. In simulations with normal and with skewed logarithms it held the truth in 80 to
    83 % of samples of 5, 82 to 88 % of 6, 89 to 91 % of 12 and 90 to 93 % of 20.

    The interval is undefined (NaN) for fewer than 5 prompts and where the ratios do not differ; without any ratio the
    value is undefined too.

    Args:
        ratios: dimensionless, one per prompt, each already a median over repetitions.
        rng: a seeded generator; the same seed gives the same interval.

    Raises:
        ValueError: a ratio is not a positive finite number.
    """
    values = np.asarray(ratios, dtype=np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"ratios must be positive and finite, got {values.tolist()}: drop the failed cells first")
    if values.size == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    logs = np.log(values)
    low, high = _mean_interval(logs, rng)
    return Estimate(float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high)), values.size)


def over_prompts(rows: pd.DataFrame, column: str, seed: int = 0) -> Estimate:
    """The geometric mean of a column over prompt groups, each a median over its repetitions, with its interval."""
    return geometric_mean(_per_prompt(rows, column), np.random.default_rng(seed))


def mean_over_prompts(rows: pd.DataFrame, column: str) -> float:
    """The value of `over_prompts` alone, without the bootstrap; NaN where there is none."""
    return float(np.exp(np.log(_per_prompt(rows, column)).mean()))


def _per_prompt(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows.groupby("prompt_group")[column].median().astype(float).dropna()


def ratio_of_sums(numerators: Sequence[float] | pd.Series, denominators: Sequence[float] | pd.Series) -> Estimate:
    """The sum of one over the sum of the other, a pair of numbers per prompt, with a 95 % interval over prompts.

    Of a ratio estimator, linearised, with Student's t (Cochran 1977, section 6.4); undefined for a single prompt.
    """
    top, bottom = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))
    if bottom.sum() <= 0:
        return Estimate(np.nan, np.nan, np.nan, bottom.size)
    ratio, size = float(top.sum() / bottom.sum()), bottom.size
    if size < 2:
        return Estimate(ratio, np.nan, np.nan, size)
    spread = np.sqrt(size / (size - 1) * ((top - ratio * bottom) ** 2).sum()) / bottom.sum()
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, size - 1) * spread)
    return Estimate(ratio, ratio - half, ratio + half, size)


def median_interval(values: Sequence[float] | pd.Series) -> tuple[float, float]:
    """95 % interval of a median from order statistics, for values that are independent; (NaN, NaN) for fewer than 6.

    Nothing is assumed of their distribution: how many lie below the median is binomial with probability one half.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    # So few values lie below the median in under 2.5 % of samples.
    rare = int(stats.binom.ppf((1 - CONFIDENCE) / 2, ordered.size, 0.5)) - 1
    return (np.nan, np.nan) if rare < 0 else (float(ordered[rare]), float(ordered[-1 - rare]))


def _mean_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """BCa interval of a mean, (NaN, NaN) where the data are too few or too alike to have one."""
    if values.size < LEAST_VALUES or np.ptp(values) < 1e-9:
        return np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", stats.DegenerateDataWarning)
        try:
            result = stats.bootstrap(
                (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", rng=rng
            )
        except stats.DegenerateDataWarning:
            return np.nan, np.nan
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
