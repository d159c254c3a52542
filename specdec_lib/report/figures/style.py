"""The house style of every figure: colours, names, sizes, direct labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

Arguments = ParamSpec("Arguments")
METHOD_COLORS = {  # Okabe and Ito 2008, and a grey
    "autoregressive": "#4D4D4D",
    "draft": "#0072B2",
    "ngram": "#D55E00",
    "composite": "#009E73",
}
METHOD_MARKERS = {  # so that a grey print still tells them apart
    "autoregressive": "s",
    "draft": "o",
    "ngram": "^",
    "composite": "D",
}
METHOD_NAMES = {
    "autoregressive": "autoregressive",
    "draft": "draft model",
    "ngram": "n-gram lookup",
    "composite": "lookup or draft",
}
AXIS_NAMES = {
    "num_draft_tokens": "number of draft tokens γ",
    "batch_size": "batch size",
    "prompt_tokens": "prompt length (tokens)",
    "max_new_tokens": "output length (tokens)",
}
MUTED = "#6B6B6B"
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


class EndLabel(NamedTuple):
    """A text beside the end of a curve, which lies at `y` in data coordinates."""

    y: float
    text: str
    color: str


def in_house_style(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorate a function that draws a figure: the style holds while it draws and leaves no trace after."""

    @functools.wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def new_figure(title: str, panels: int, *, sharey: bool = True, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """A figure with its title at the left and panels side by side."""
    figure = Figure(figsize=(6.2 if panels == 1 else 4.6 * panels, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color="#111111")
    return figure, list(figure.subplots(1, panels, sharey=sharey, squeeze=False)[0])


def label_ends(axes: Axes, labels: Sequence[EndLabel], gap: float = 0.065) -> None:
    """Write each label at the right edge, at the height of its curve's end, moved as little as keeps them apart.

    Call it when the limits of the y axis are final.

    Args:
        gap: least distance between two labels as a share of the axis height.
    """
    bottom, top = axes.get_ylim()
    labels = sorted(labels, key=lambda label: label.y)
    heights = np.array([(label.y - bottom) / (top - bottom) for label in labels])
    ladder = gap * np.arange(len(labels))
    places = isotonic_regression(heights - ladder).x + ladder if labels else heights
    for label, place in zip(labels, places, strict=True):
        axes.annotate(
            label.text,
            xy=(1, place),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=label.color,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def temperature_name(temperature: float) -> str:
    """How a temperature is named in titles and sentences."""
    return "greedy (T = 0)" if temperature == 0 else f"T = {temperature:g}"
