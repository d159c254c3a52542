"""Figures of the exactness tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from specdec_lib.analysis.exactness import WRONG
from specdec_lib.analysis.style import METHOD_COLORS, MUTED, in_house_style, new_figure


@in_house_style
def law_figure(tests: dict[str, pd.DataFrame]) -> Figure:
    """Standardised deviation of each pair's count from the target's law, a panel for each sampler.

    With a sound sampler (observed - expected) / sqrt(expected) is close to standard normal: the band holds 99.9 %.

    Args:
        tests: tables of `exactness.sampling_test` by name.
    """
    figure, panels = new_figure("Observed minus expected count of each pair of tokens, in standard errors", len(tests))
    figure.set_size_inches(2.6 * len(tests), 3.2)
    for axes, (name, table) in zip(panels, tests.items(), strict=True):
        table = table[table["expected"] >= 5]
        deviation = (table["observed"] - table["expected"]) / np.sqrt(table["expected"])
        wrong = WRONG in name
        axes.axhspan(-3.29, 3.29, color=MUTED, alpha=0.12, linewidth=0)
        axes.plot(table["expected"], deviation, "." if not wrong else "x", markersize=4.5,
                  color=METHOD_COLORS["ngram" if wrong else "draft"])  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name.replace(": ", ":\n").replace(", ", ",\n"), fontsize=8.5)
        axes.set_xlabel("expected count")
    panels[0].set_ylabel("deviation (standard errors)")
    return figure
