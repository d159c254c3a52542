"""Figures of cost: dollars and break-even prices, and latency against cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.analysis.cost import on_front
from specdec_lib.analysis.metrics import BASELINE
from specdec_lib.report.figures.style import (
    METHOD_COLORS,
    METHOD_MARKERS,
    METHOD_NAMES,
    MUTED,
    EndLabel,
    in_house_style,
    new_figure,
    temperature_name,
)
from specdec_lib.report.figures.sweep import by_temperature, titled


@in_house_style
def cost_figure(costs: pd.DataFrame, price_name: str) -> Figure:
    """Dollars per million tokens, and the price ratio at which speculation breaks even, one row per method.

    Args:
        costs: from `cost.cost_table`, one gamma for each method.
        price_name: whose price it is and of which day; printed below the axis.
    """
    costs = costs.sort_values(["temperature", "method"], ascending=[False, False]).reset_index(drop=True)
    title = titled(costs, "Cost of a million tokens")
    figure, (dollars, ratios) = new_figure(title, 2, height=1.4 + 0.33 * len(costs))
    colors = costs["method"].map(METHOD_COLORS)
    names = [f"{METHOD_NAMES[line.method]}, {temperature_name(line.temperature)}" for line in costs.itertuples()]
    dollars.hlines(costs.index, 0, costs["usd_per_million_tokens"], colors=colors, linewidth=2)
    dollars.scatter(costs["usd_per_million_tokens"], costs.index, c=colors, zorder=3)
    for place, usd in costs["usd_per_million_tokens"].items():
        beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        dollars.annotate(f"${usd:#.3g}", (usd, place), **beside)
    dollars.set_yticks(costs.index, names)
    dollars.set_xlim(0, costs["usd_per_million_tokens"].max() * 1.18)
    dollars.set_xlabel(f"US dollars per million tokens\n{price_name}")
    dollars.grid(visible=False, axis="y")

    methods = costs[costs["method"] != BASELINE]
    low, high = methods["break_even_price_ratio_low"], methods["break_even_price_ratio_high"]
    ratios.axvline(1, color=METHOD_COLORS[BASELINE], linewidth=1.2)
    ratios.hlines(methods.index, low, high, colors=colors[methods.index], linewidth=2, alpha=0.5)
    ratios.scatter(methods["break_even_price_ratio"], methods.index, c=colors[methods.index], zorder=3)
    ratios.set_title("speculation pays to the left of its point", fontsize=9.5, color=METHOD_COLORS[BASELINE])
    ratios.set_xlabel("hourly price, speculative over baseline,\nat which both cost the same (95 % interval)")
    ratios.grid(visible=False, axis="y")
    return figure


@in_house_style
def pareto_figure(costs: pd.DataFrame, price_name: str) -> Figure:
    """Latency against cost of every setting, a panel for each temperature; a line joins those that no other beats.

    A larger mark is a larger batch. The two ends of the front are named.

    Args:
        costs: from `cost.cost_table`, of one prompt length and output length.
        price_name: whose price it is and of which day; printed below the axis.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> list[EndLabel]:
        front = panel[on_front(panel)].sort_values("tpot_ms")
        axes.plot(front["tpot_ms"], front["usd_per_million_tokens"], color=MUTED, linewidth=1, zorder=1)
        for method, points in panel.groupby("method"):
            style: dict[str, Any] = {"color": METHOD_COLORS[method], "marker": METHOD_MARKERS[method]}
            sizes = 22 + 10 * np.log2(points["batch_size"].astype(float))
            axes.scatter(points["tpot_ms"], points["usd_per_million_tokens"], sizes, alpha=0.75, linewidths=0, **style)
        _name_end(axes, front.iloc[0], xytext=(-5, -9), ha="right")
        if len(front) > 1:
            _name_end(axes, front.iloc[-1], xytext=(0, -15), ha="left")
        for index, method in enumerate(sorted(panel["method"].unique())):
            style = {"color": METHOD_COLORS[method], "ha": "right", "transform": axes.transAxes}
            axes.text(0.98, 0.93 - 0.08 * index, METHOD_NAMES[method], **style)
        axes.set_xlim(0, panel["tpot_ms"].max() * 1.15)
        axes.set_xlabel(f"time per output token (ms)\n{price_name}")
        return []

    dollars = "US dollars per million tokens"
    return by_temperature(costs, "Latency against cost", dollars, draw, bottom=0)


def _name_end(axes: Axes, end: pd.Series, **place: Any) -> None:
    """Say beside an end of the front which setting it is."""
    drafted = "" if pd.isna(end["num_draft_tokens"]) else f", γ = {end['num_draft_tokens']}"
    text = f"{METHOD_NAMES[end['method']]}{drafted}\nbatch {end['batch_size']}"
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "va": "top"}
    point = (end["tpot_ms"], end["usd_per_million_tokens"])
    axes.annotate(text, point, color=METHOD_COLORS[end["method"]], **style, **place)
