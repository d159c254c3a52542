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
    speculating = (front["method"] != AUTOREGRESSIVE).sum()
    fastest, cheapest = front.iloc[0], front.loc[front["usd_per_million_tokens"].idxmin()]
    return (
        f"{len(front)} of {len(lines)} settings are on the front, and {speculating} of these speculate. "
        f"The fastest is {_setting(fastest)} ({fastest['tpot_ms']:.2f} ms); the cheapest is {_setting(cheapest)} "
        f"(${cheapest['usd_per_million_tokens']:#.3g})."
    )


def finding_tradeoff(lines: pd.DataFrame) -> str:
    """At each temperature the setting that serves one user fastest, and the one with the largest throughput.

    Args:
        lines: from `tradeoff.tradeoff_lines`.
    """
    said = []
    for temperature, here in lines.groupby("temperature"):
        fastest = here.loc[here["user_tokens_per_second"].idxmax()]
        largest = here.loc[here["tokens_per_second"].idxmax()]
        said.append(
            f"At T = {temperature:g} one user gets most from {_setting(fastest)}: "
            f"{fastest['user_tokens_per_second']:.0f} tokens/s after the first."
        )
        if here["batch_size"].nunique() > 1:
            said.append(
                f"All users together get most from {_setting(largest)}: {largest['tokens_per_second']:.0f} tokens/s, "
                "prompts included."
            )
    return " ".join(said) or NOTHING


def _setting(line: pd.Series) -> str:
    """Method, gamma and batch size of a line."""
    gamma = "" if pd.isna(line["num_draft_tokens"]) else f", γ = {line['num_draft_tokens']:.0f}"
    return f"{label(line['method'])}{gamma} at batch {line['batch_size']}"
