"""The house style of every figure: panels, one colour and marker a method, one legend below."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.methods import METHODS, label

Arguments = ParamSpec("Arguments")
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito 2008
MARKERS = ("o", "^", "s", "D", "v", "P")
MUTED, DARK = "#6B6B6B", "#222222"
AXIS_NAMES = {
    "num_draft_tokens": "number of draft tokens γ",
    "batch_size": "batch size",
    "prompt_tokens": "prompt length (tokens)",
    "max_new_tokens": "output length (tokens)",
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


def in_house_style(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorate a function that draws a figure: the style holds while it draws and leaves no trace after."""

    @functools.wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with mpl.rc_context(sns.axes_style("whitegrid", STYLE)), mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def new_figure(
    title: str, panels: int, *, columns: int = 3, height: float = 3.2, sharex: bool = False, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure with its title at the left and panels in rows of at most `columns`.

    Args:
        height: of a row, in inches.
    """
    columns = max(min(columns, panels), 1)
    rows = max(-(-panels // columns), 1)
    figure = Figure(figsize=(6.2 if columns == 1 else 4.4 * columns, 0.7 + height * rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color="#111111")
    axes = list(figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False).ravel())
    for unused in axes[panels:]:
        figure.delaxes(unused)
    return figure, axes[:panels]


def empty_figure(title: str) -> Figure:
    """A figure that says that there is nothing to draw."""
    figure, _ = new_figure(title, 0, height=0.8)
    figure.text(0.5, 0.4, "Nothing was measured for this figure.", ha="center", color=MUTED)
    return figure


def legend(figure: Figure) -> None:
    """One legend below the panels, with each name once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if own := axes.get_legend():
            own.remove()
    inches = 0.5 + 0.08 * max(map(len, handles), default=0)  # of the longest name
    columns = max(1, int(figure.get_figwidth() / inches))
    figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=columns)


def titled(title: str, *tables: pd.DataFrame) -> str:
    """A title that says what kinds of evidence the figure shows."""
    evidence = sorted({kind for table in tables for kind in table["evidence"].unique()})
    return f"{title} ({', '.join(evidence)})"


def color_of(method: str) -> str:
    """The colour of a method; grey for one that is not registered here, as in an old run."""
    return METHODS[method].color if method in METHODS else "#999999"


def marker_of(method: str) -> str:
    """The marker of a method."""
    return METHODS[method].marker if method in METHODS else "X"


def by_method(methods: Iterable[str]) -> dict[str, Any]:
    """What seaborn needs to draw each method by its label, in its colour and with its marker.

    The table needs a column `label`: see `with_labels`.
    """
    names = [name for name in METHODS if name in set(methods)] + sorted(set(methods) - METHODS.keys())
    return {
        "hue": "label",
        "style": "label",
        "hue_order": [label(name) for name in names],
        "style_order": [label(name) for name in names],
        "palette": {label(name): color_of(name) for name in names},
        "markers": {label(name): marker_of(name) for name in names},
    }


def with_labels(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column `label`, the method for readers."""
    return table.assign(label=table["method"].map(label))
