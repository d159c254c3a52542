"""What the figures and tables of the cost study show, in one or two sentences computed from their table."""

from __future__ import annotations

import pandas as pd

from specdec_lib.hardware.catalog import Price
from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import NOTHING, setting


def price_note(price: Price) -> str:
    """Whose price of an hour it is, and of which day."""
    return f"at ${price.usd_per_hour:g} an hour: {price.vendor}, {price.region}, read on {price.date}"


def finding_cost(costs: pd.DataFrame) -> str:
    """The cheapest line, and the price ratio that it can bear."""
    if costs.empty:
        return NOTHING
    cheapest = costs.loc[costs["usd_per_million_tokens"].idxmin()]
    text = f"Cheapest: {setting(cheapest)}, ${cheapest['usd_per_million_tokens']:#.3g} per million tokens"
    same = costs[(costs["method"] == AUTOREGRESSIVE) & (costs["temperature"] == cheapest["temperature"])]
    ratio = cheapest["break_even_price_ratio"]
    if cheapest["method"] == AUTOREGRESSIVE or same.empty or pd.isna(ratio):
        return f"{text}."
    return (
        f"{text}, against ${same['usd_per_million_tokens'].iloc[0]:#.3g} without speculation. "
        f"It would still pay at {ratio:.2f} times the hourly price."
    )


def finding_pareto(lines: pd.DataFrame) -> str:
    """How many settings no other beats in latency and cost, and the two ends of this front.

    Args:
        lines: with `on_front`, as `cost.with_front` marks it.
    """
    front = lines[lines["on_front"].astype(bool)].sort_values("tpot_ms")
    if front.empty:
        return NOTHING
    speculative = int((front["method"] != AUTOREGRESSIVE).sum())
    ends = [
        f"{label(line['method'])} at batch {line['batch_size']} ({line['tpot_ms']:.3g} ms a token, "
        f"${line['usd_per_million_tokens']:#.3g} per million)"
        for _, line in front.iloc[[0, -1]].iterrows()
    ]
    return (
        f"No other setting beats {len(front)} of the {len(lines)} in both latency and cost; {speculative} of these "
        f"speculate. The fastest is {ends[0]}, the cheapest of them {ends[1]}."
    )
