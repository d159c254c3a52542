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
        axes.axhspan(-3.29, 3.29, color=MUTED, alpha=0.12, linewidth=0)
        axes.plot(table["expected"], table["deviation"], ".", markersize=4, color=PALETTE[0])
        axes.set(xscale="log", xlabel="expected count", ylabel="deviation", ylim=(-limit, limit))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.title.set_fontsize(9)

    cells = cells.assign(deviation=(cells["observed"] - cells["expected"]) / np.sqrt(cells["expected"]))
    cells = cells[cells["expected"] >= 5]
    limit = max(4.5, 1.1 * cells["deviation"].abs().max())  # the whole band is seen
    title = "Observed minus expected count of each pair of tokens, in standard errors"
    return faceted(cells, "sampler", title, draw, named=_wrapped, columns=3, height=2.5)


def _wrapped(sampler: str) -> str:
    """A title no wider than its panel, in lines that end at commas."""
    parts = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in sampler.split(", ")]
    return textwrap.fill(", ".join(parts), 44, break_on_hyphens=False)
