"""Figures of the exactness tests."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from specdec_lib.report.figures.style import MUTED, PALETTE, faceted, in_house_style


@in_house_style
def law_figure(cells: pd.DataFrame) -> Figure:
    """Standardised deviation of each pair's count from the target's law, a panel for each sampler.

    A pair is of tokens, or of tokens and groups of tokens. With a sound sampler (observed - expected) / sqrt(expected)
    is close to standard normal: the band holds 99.9 %.

    Args:
        cells: columns sampler, observed, expected; see `exactness.Certificate`.
    """

    def draw(axes: Axes, table: pd.DataFrame) -> None:
        table = table[table["expected"] >= 5]
        deviation = (table["observed"] - table["expected"]) / np.sqrt(table["expected"])
        axes.axhspan(-3.29, 3.29, color=MUTED, alpha=0.12, linewidth=0)
        axes.plot(table["expected"], deviation, ".", markersize=4, color=PALETTE[0])
        axes.set(xscale="log", xlabel="expected count", ylabel="deviation")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.title.set_fontsize(9)

    title = "Observed minus expected count of each pair of tokens, in standard errors"
    return faceted(cells, "sampler", title, draw, named=_wrapped, columns=3, height=2.5)


def _wrapped(sampler: str) -> str:
    """A title no wider than its panel."""
    return textwrap.fill(sampler, 44)
