"""The house style of every figure: panels, one colour and marker a method, one legend below."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.methods import METHODS, label

Arguments = ParamSpec("Arguments")
DrawPanel = Callable[[Axes, pd.DataFrame], None]
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


def faceted(
    table: pd.DataFrame, by: str, title: str, draw: DrawPanel, *, named: Callable[[Any], str] = str, **layout: Any
) -> Figure:
    """A figure with a panel for each value of a column, and one legend; it says so if there is nothing to draw.

    Args:
        draw: draws one panel from its lines of the table.
        named: how a value of `by` is called above its panel.
        layout: see `new_figure`.
    """
    groups = list(table.groupby(by))
    if not groups:
        figure, _ = new_figure(title, 0, height=0.8)
        figure.text(0.5, 0.4, "Nothing was measured for this figure.", ha="center", color=MUTED)
        return figure
    figure, panels = new_figure(titled(title, table), len(groups), **layout)
    for axes, (value, lines) in zip(panels, groups, strict=True):
        axes.set_title(named(value))
        draw(axes, lines)
    legend(figure)
    return figure


def legend(figure: Figure) -> None:
    """One legend below the panels, with each name once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    inches = 0.5 + 0.08 * max(map(len, handles), default=0)  # of the longest name
    columns = max(1, int(figure.get_figwidth() / inches))
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=columns)


def titled(title: str, *tables: pd.DataFrame) -> str:
    """A title that says what kinds of evidence the figure shows, unless it says so already."""
    evidence = sorted({kind for table in tables if "evidence" in table for kind in table["evidence"].unique()})
    return f"{title} ({', '.join(evidence)})" if evidence and not title.endswith(")") else title


def look_of(method: str) -> dict[str, Any]:
    """Label, colour and marker of a method, for matplotlib; grey for one that is not registered, as in an old run."""
    known = METHODS.get(method)
    return {
        "label": label(method),
        "color": known.color if known else "#999999",
        "marker": known.marker if known else "X",
    }
