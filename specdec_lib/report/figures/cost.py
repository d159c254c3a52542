"""Figures of cost: dollars and break-even prices, and latency against cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import (
    MUTED,
    color_of,
    empty_figure,
    in_house_style,
    legend,
    marker_of,
    new_figure,
    titled,
)


@in_house_style
def cost_figure(costs: pd.DataFrame, price_name: str) -> Figure:
    """Dollars per million tokens, and the price ratio at which speculation breaks even, one row per method.

    Args:
        costs: from `cost.cost_table`, one gamma for each method.
        price_name: whose price it is and of which day; printed below.
    """
    title = "Cost of a million tokens"
    if costs.empty:
        return empty_figure(title)
    costs = costs.sort_values(["temperature", "method"], ascending=False).reset_index(drop=True)
    figure, (dollars, ratios) = new_figure(titled(title, costs), 2, height=0.9 + 0.33 * len(costs))
    colors = costs["method"].map(color_of)
    bars = dollars.barh(costs.index, costs["usd_per_million_tokens"], color=colors, height=0.6)
    dollars.bar_label(bars, [f"${usd:#.3g}" for usd in costs["usd_per_million_tokens"]], padding=4)
    dollars.set_yticks(
        costs.index, [f"{label(n.method)}, {temperature_name(n.temperature)}" for n in costs.itertuples()]
    )
    dollars.margins(x=0.18)
    dollars.set_xlabel("US dollars per million tokens")
    figure.supxlabel(price_name, x=0.01, ha="left", fontsize=8.5)

    methods = costs[(costs["method"] != AUTOREGRESSIVE) & costs["break_even_price_ratio"].notna()]
    low, high = methods["break_even_price_ratio_low"], methods["break_even_price_ratio_high"]
    ratios.axvline(1, color=color_of(AUTOREGRESSIVE), linewidth=1.2)
    ratios.hlines(methods.index, low, high, colors=colors[methods.index], linewidth=2, alpha=0.5)
    ratios.scatter(methods["break_even_price_ratio"], methods.index, c=colors[methods.index], zorder=3)
    ratios.set_title("speculation pays at price ratios left of its point", fontsize=9.5, color=MUTED)
    ratios.set_xlabel("hourly price, speculative over baseline,\nat which both cost the same (95 % interval)")
    return figure


@in_house_style
def pareto_figure(lines: pd.DataFrame, price_name: str) -> Figure:
    """Latency against cost of every setting, a panel for each temperature; a line joins those that no other beats.

    A larger mark is a larger batch.

    Args:
        lines: from `cost.with_front`, of one prompt length and output length.
        price_name: whose price it is and of which day; printed below.
    """
    title, groups = "Latency against cost", list(lines.groupby("temperature"))
    if not groups:
        return empty_figure(title)
    figure, panels = new_figure(titled(title, lines), len(groups))
    for axes, (temperature, panel) in zip(panels, groups, strict=True):
        front = panel[panel["on_front"].astype(bool)]
        axes.plot(front["tpot_ms"], front["usd_per_million_tokens"], color=MUTED, linewidth=1, zorder=1)
        for method, points in panel.groupby("method"):
            look: dict[str, Any] = {"color": color_of(method), "marker": marker_of(method), "alpha": 0.75}
            sizes = 22 + 10 * np.log2(points["batch_size"].astype(float))
            axes.scatter(
                points["tpot_ms"], points["usd_per_million_tokens"], sizes, label=label(method), linewidths=0, **look
            )
        axes.set(xlabel="time per output token (ms)", ylabel="US dollars per million tokens")
        axes.set_title(temperature_name(temperature))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    figure.supxlabel(price_name, x=0.01, ha="left", fontsize=8.5)
    legend(figure)
    return figure
