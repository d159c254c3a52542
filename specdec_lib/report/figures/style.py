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
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito 2008
MARKERS = ("o", "^", "s", "D", "v", "P")
EMPTY = "Nothing was measured for this figure."
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


def faceted(
    table: pd.DataFrame,
    by: str,
    title: str,
    draw: Callable[[Axes, pd.DataFrame], None],
    *,
    named: Callable[[Any], str] = str,
    also: pd.DataFrame | None = None,
    columns: int = 3,
    width: float | None = None,
    height: float = 3.2,
    sharex: bool = False,
    sharey: bool = True,
) -> Figure:
    """A figure with a panel for each value of a column, and one legend; it says so if there is nothing to draw.

    The title says what kinds of evidence it shows.

    Args:
        draw: draws one panel from its lines of the table.
        named: how a value of `by` is called above its panel.
        also: another table whose evidence it shows.
        columns: most panels in a row.
        width: of a panel, in inches; by default 4.4, or 6.2 where it stands alone in its row.
        height: of a row, in inches.
    """
    groups = list(table.groupby(by))
    evidence = {kind for each in (table, also) if each is not None and "evidence" in each for kind in each["evidence"]}
    columns = max(min(columns, len(groups)), 1)
    rows = max(-(-len(groups) // columns), 1)
    width = width or (6.2 if columns == 1 else 4.4)
    size = (width * columns, 0.7 + (height if groups else 0.8) * rows)
    figure = Figure(figsize=size, layout="constrained")
    named_title = f"{title} ({', '.join(sorted(evidence))})" if evidence else title
    figure.suptitle(named_title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=DARK)
    if not groups:
        figure.text(0.5, 0.4, EMPTY, ha="center", color=MUTED)
        return figure
    panels = list(figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False).ravel())
    for unused in panels[len(groups) :]:
        figure.delaxes(unused)
    handles: dict[str, Any] = {}
    for axes, (value, lines) in zip(panels, groups, strict=False):
        axes.set_title(named(value))
        draw(axes, lines)
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        inches = 0.5 + 0.08 * max(map(len, handles))  # of the longest name
        fitting = max(1, int(figure.get_figwidth() / inches))
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=fitting)
    return figure


def label_left(axes: Axes, text: str) -> None:
    """Name the y axis, which a row of panels shares, at its first panel only."""
    place = axes.get_subplotspec()
    axes.set_ylabel(text if place is None or place.is_first_col() else "")


def look_of(method: str) -> dict[str, Any]:
    """Label, colour and marker of a method, for matplotlib; grey for one that is not registered, as in an old run."""
    known = METHODS.get(method)
    return {
        "label": label(method),
        "color": known.color if known else "#999999",
        "marker": known.marker if known else "X",
    }
