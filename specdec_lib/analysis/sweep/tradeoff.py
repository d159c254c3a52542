"""Throughput against latency: what one user gets, and what all users of a machine get together."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.cost import with_front


def tradeoff_lines(lines: pd.DataFrame) -> pd.DataFrame:
    """The timed lines with `user_tokens_per_second`, which is 1000 / TPOT, and `on_front`.

    A line is on the front if no other of its temperature gives both more tokens per second to each user and more to
    all users together. `tokens_per_second` is of whole calls, prefills included.

    Args:
        lines: from `headline.every_batch(lines, params)`, so that all are of one prompt length and output length.
    """
    inverse = 1 / lines["tokens_per_second"].astype(float)  # at any price, what a token costs is in proportion
    lines = with_front(lines.assign(usd_per_million_tokens=inverse), ["temperature"])
    return lines.assign(user_tokens_per_second=1000 / lines["tpot_ms"].astype(float))
