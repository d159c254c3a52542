"""Our engine next to others, as a figure."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.peers.lines import way_name
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import DARK, faceted, in_house_style, look_of

WIDEST_NAME = 30  # characters of a line


@in_house_style
def peers_figure(lines: pd.DataFrame) -> Figure:
    """Time per token of every way with its 95 % interval, a panel for each temperature; a colour is a method.

    Args:
        lines: from `peers.lines.best_lines`; the first stands on top.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        ways = [way_name(n.engine, n.method, n.draft_id, n.num_draft_tokens) for n in panel.itertuples()]
        names = [
            textwrap.fill(way.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"), WIDEST_NAME) for way in ways
        ]
        engine = (panel["engine"] != panel["engine"].shift()).cumsum()
        places = pd.Series(range(len(panel)), index=panel.index) + 0.5 * engine
        colors = [look_of(method)["color"] for method in panel["method"]]
        axes.barh(places, panel["tpot_ms"], color=colors, height=0.75)
        for color, linewidth in (("white", 3), (DARK, 1.2)):  # so that it shows on a dark bar too
            axes.hlines(places, panel["tpot_ms_low"], panel["tpot_ms_high"], color=color, linewidth=linewidth)
        ends = panel[["tpot_ms", "tpot_ms_high"]].max(axis=1)
        for place, end, tpot in zip(places, ends, panel["tpot_ms"], strict=True):
            beyond: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
            axes.annotate(f"{tpot:.1f}", (end, place), **beyond)
        axes.set_yticks(places, names, fontsize=7.5)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("time per output token (ms)")
        axes.set_xlim(0, 1.1 * lines[["tpot_ms", "tpot_ms_high"]].max(axis=None))

    title, most = "Time per token next to other engines", lines["temperature"].value_counts().max()
    height = 0.6 + 0.3 * (0 if pd.isna(most) else most)
    return faceted(
        lines, "temperature", title, draw, named=temperature_name, columns=1, width=7.2, height=height, sharey=False
    )
