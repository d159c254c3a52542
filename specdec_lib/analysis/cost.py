"""What a token costs: dollars per million emitted tokens at a given price of an hour."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.metrics import LINE
from specdec_lib.hardware.catalog import Price, usd_per_million_tokens


def price_note(price: Price) -> str:
    """Whose price of an hour it is, and of which day."""
    return f"at ${price.usd_per_hour:g} an hour: {price.vendor}, {price.region}, read on {price.date}"


def cost_table(lines: pd.DataFrame, usd_per_hour: float) -> pd.DataFrame:
    """Dollars per million tokens of each line, and its break-even price ratio.

    `break_even_price_ratio` is the ratio of hourly prices, speculative over baseline, at which both cost the same per
    token. It equals the paired throughput ratio, does not depend on the price, and keeps that ratio's interval.

    Args:
        lines: from `metrics.speedups`.
        usd_per_hour: the price of the device that the lines were measured on.
    """
    timed = lines[lines["tokens_per_second"].notna()]
    return (
        timed[LINE]
        .assign(
            tokens_per_second=timed["tokens_per_second"],
            tpot_ms=timed["tpot_ms"],
            usd_per_million_tokens=[usd_per_million_tokens(rate, usd_per_hour) for rate in timed["tokens_per_second"]],
            break_even_price_ratio=timed["throughput_ratio"],
            break_even_price_ratio_low=timed["throughput_ratio_low"],
            break_even_price_ratio_high=timed["throughput_ratio_high"],
        )
        .reset_index(drop=True)
    )


def on_front(lines: pd.DataFrame) -> pd.Series:
    """Which lines no other beats in time per token and dollars at once (ties stay): the latency-cost Pareto front.

    Args:
        lines: columns `tpot_ms` and `usd_per_million_tokens`, both defined.
    """
    time, dollars = lines["tpot_ms"].to_numpy(float), lines["usd_per_million_tokens"].to_numpy(float)
    no_worse = (time[:, None] <= time) & (dollars[:, None] <= dollars)  # [other, line]
    better = (time[:, None] < time) | (dollars[:, None] < dollars)
    return pd.Series(~(no_worse & better).any(axis=0), index=lines.index)
