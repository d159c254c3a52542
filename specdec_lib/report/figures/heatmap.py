"""Speedups as a heatmap: blue is faster than autoregressive decoding, orange is slower."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from specdec_lib.report.figures.style import DARK

SLOWER, FASTER = "#D55E00", "#0072B2"  # Okabe and Ito 2008; also told apart by who sees no red or green
COLORS = LinearSegmentedColormap.from_list("speedup", [SLOWER, "#F4F4F4", FASTER])
LEAST_SPAN = 0.5  # in octaves: below 1.4x the colours stay pale
WHITE_FROM = 0.8  # of the span: text on a darker cell is white


def color_span(speedups: pd.Series) -> float:
    """How many octaves the colours reach to both sides of 1, for panels that share them."""
    octaves = np.log2(speedups.dropna().to_numpy(float))
    return max(LEAST_SPAN, float(np.abs(octaves).max(initial=0)))


def speedup_heatmap(axes: Axes, speedups: pd.DataFrame, texts: pd.DataFrame, span: float) -> None:
    """Draw one cell for each speedup, coloured by its logarithm; a cell that was not measured stays blank.

    Args:
        speedups: a value or NaN for each row and column.
        texts: what each cell says, of the same shape.
        span: from `color_span`.
    """
    octaves = np.log2(speedups.to_numpy(dtype=float))
    colors = {"cmap": COLORS, "vmin": -span, "vmax": span, "cbar": False}
    sns.heatmap(octaves, linewidths=1.5, linecolor="white", ax=axes, **colors)
    for (row, column), octave in np.ndenumerate(octaves):
        if np.isfinite(octave):
            color = "white" if abs(octave) > WHITE_FROM * span else DARK
            axes.text(column + 0.5, row + 0.5, texts.iat[row, column], ha="center", va="center", color=color)
    axes.set_xticks(np.arange(len(speedups.columns)) + 0.5, map(str, speedups.columns))
    axes.set_yticks(np.arange(len(speedups)) + 0.5, map(str, speedups.index), rotation=0)
    axes.grid(False)
    for color, text in ((FASTER, "faster than autoregressive"), (SLOWER, "slower")):
        axes.scatter([], [], s=70, marker="s", color=color, label=text)
