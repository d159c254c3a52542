"""What a token costs: dollars per million emitted tokens at a given price of an hour."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.metrics import LINE
from specdec_lib.hardware.catalog import usd_per_million_tokens


def cost_table(lines: pd.DataFrame, usd_per_hour: float) -> pd.DataFrame:
    """Dollars per million tokens of each line, and its break-even price ratio.

    `break_even_price_ratio` is the ratio of hourly prices, speculative over baseline, at which both cost the same per
    token. It equals the paired speedup of whole calls, does not depend on the price, and keeps that ratio's interval.

    Args:
        lines: from `metrics.speedups`.
        usd_per_hour: the price of the device that the lines were measured on.
    """
    timed = lines[lines["tokens_per_second"].notna()]
    costs = timed[LINE].assign(
        tokens_per_second=timed["tokens_per_second"],
        tpot_ms=timed["tpot_ms"],
        usd_per_million_tokens=[usd_per_million_tokens(rate, usd_per_hour) for rate in timed["tokens_per_second"]],
    )
    ratios = timed.filter(like="e2e_speedup")
    ratios.columns = ratios.columns.str.replace("e2e_speedup", "break_even_price_ratio")
    return costs.join(ratios).reset_index(drop=True)


def with_front(lines: pd.DataFrame, same_work: list[str]) -> pd.DataFrame:
    """The timed lines, fastest first, with `on_front`: no other for the same work beats it in time and dollars.

    Args:
        lines: columns `tpot_ms` and `usd_per_million_tokens`, and those of `same_work`.
    """
    lines = lines[lines["tpot_ms"].notna() & lines["usd_per_million_tokens"].notna()]
    lines = lines.sort_values(["tpot_ms", "usd_per_million_tokens"]).reset_index(drop=True)
    fronts = [on_front(group) for _, group in lines.groupby(same_work, dropna=False)]
    return lines.assign(on_front=pd.concat(fronts) if fronts else False)


def on_front(lines: pd.DataFrame) -> pd.Series:
    """Which lines no other beats in time per token and dollars at once (ties stay): the latency-cost Pareto front."""
    time, dollars = lines["tpot_ms"].to_numpy(float), lines["usd_per_million_tokens"].to_numpy(float)
    no_worse = (time[:, None] <= time) & (dollars[:, None] <= dollars)  # [other, line]
    better = (time[:, None] < time) | (dollars[:, None] < dollars)
    return pd.Series(~(no_worse & better).any(axis=0), index=lines.index)
