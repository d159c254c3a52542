"""What the figures and tables of the cost study show, computed from their table."""

from __future__ import annotations

import pandas as pd

from specdec_lib.hardware.catalog import Price
from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import NOTHING


def price_note(price: Price) -> str:
    """Whose price of an hour it is, and of which day."""
    return f"at ${price.usd_per_hour:g} an hour: {price.vendor}, {price.region}, read on {price.date}"


def finding_pareto(lines: pd.DataFrame) -> str:
    """How many settings no other beats in latency and cost, and the two ends of this front.

    Args:
        lines: with `on_front`, as `cost.with_front` marks it.
    """
    front = lines[lines["on_front"].astype(bool)].sort_values("tpot_ms")
    if front.empty:
        return NOTHING
    ends = [f"{label(line.method)} at batch {line.batch_size}" for line in front.iloc[[0, -1]].itertuples()]
    return (
        f"No other setting beats {len(front)} of the {len(lines)} in both latency and cost; "
        f"{(front['method'] != AUTOREGRESSIVE).sum()} of these speculate. "
        f"The fastest is {ends[0]}, the cheapest of them {ends[1]}."
    )
