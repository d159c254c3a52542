"""Figures of the exactness tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from specdec_lib.report.figures.style import MUTED, PALETTE, empty_figure, in_house_style, new_figure


@in_house_style
def law_figure(cells: pd.DataFrame) -> Figure:
    """Standardised deviation of each pair's count from the target's law, a panel for each sampler.

    A pair is of tokens, or of tokens and groups of tokens. With a sound sampler (observed - expected) / sqrt(expected)
    is close to standard normal: the band holds 99.9 %.

    Args:
        cells: columns sampler, observed, expected; see `exactness.Certificate`.
    """
    title = "Observed minus expected count of each pair of tokens, in standard errors"
    if cells.empty:
        return empty_figure(title)
    groups = list(cells.groupby("sampler", sort=False))
    figure, panels = new_figure(title, len(groups), columns=4, height=2.4)
    for axes, (name, table) in zip(panels, groups, strict=True):
        table = table[table["expected"] >= 5]
        deviation = (table["observed"] - table["expected"]) / np.sqrt(table["expected"])
        axes.axhspan(-3.29, 3.29, color=MUTED, alpha=0.12, linewidth=0)
        axes.plot(table["expected"], deviation, ".", markersize=4, color=PALETTE[0])
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(str(name).replace(", ", ",\n", 1), fontsize=8)
        axes.set(xlabel="expected count", ylabel="deviation")
    return figure
