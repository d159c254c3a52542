"""Figures of the exactness tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from specdec_lib.report.figures.style import METHOD_COLORS, MUTED, in_house_style

PER_ROW = 4


@in_house_style
def law_figure(cells: pd.DataFrame) -> Figure:
    """Standardised deviation of each pair's count from the target's law, a panel for each sampler.

    A pair is of tokens, or of tokens and groups of tokens: see `exactness_law`.

    With a sound sampler (observed - expected) / sqrt(expected) is close to standard normal: the band holds 99.9 %.

    Args:
        cells: columns sampler, observed, expected; see `exactness.Certificate`.
    """
    samplers = list(dict.fromkeys(cells["sampler"]))
    rows = -(-len(samplers) // PER_ROW)
    figure = Figure(figsize=(10.4, 2.5 * rows + 0.5), layout="constrained")
    title = "Observed minus expected count of each pair of tokens, in standard errors"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color="#111111")
    panels = figure.subplots(rows, min(PER_ROW, len(samplers)), sharey=True, squeeze=False).flatten()
    for axes, name in zip(panels, samplers, strict=False):
        table = cells[(cells["sampler"] == name) & (cells["expected"] >= 5)]
        deviation = (table["observed"] - table["expected"]) / np.sqrt(table["expected"])
        axes.axhspan(-3.29, 3.29, color=MUTED, alpha=0.12, linewidth=0)
        axes.plot(table["expected"], deviation, ".", markersize=4, color=METHOD_COLORS["draft"])
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name.replace(", ", ",\n", 1), fontsize=8)
        axes.set_xlabel("expected count")
    for axes in panels[len(samplers) :]:
        axes.set_visible(False)
    for axes in panels[::PER_ROW]:
        axes.set_ylabel("deviation")
    return figure
