"""Figures of cost: dollars, and latency against cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.labels import Label, areas_of, label_points, setting_name
from specdec_lib.report.figures.style import MUTED, faceted, in_house_style, look_of


@in_house_style
def cost_figure(costs: pd.DataFrame, price_name: str) -> Figure:
    """Dollars per million tokens of each method, a panel for each temperature.

    Args:
        costs: from `cost.cost_table`, one gamma for each method.
        price_name: whose price it is and of which day.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        colors = [look_of(method)["color"] for method in panel["method"]]
        bars = axes.barh(panel["method"].map(label), panel["usd_per_million_tokens"], color=colors, height=0.6)
        axes.bar_label(bars, fmt="$%#.3g", padding=4)
        axes.margins(x=0.2)
        axes.set_xlabel(f"US dollars per million tokens\n{price_name}")

    most = costs["method"].nunique()
    return faceted(
        costs, "temperature", "Cost of a million tokens", draw, named=temperature_name, height=0.9 + 0.33 * most
    )


@in_house_style
def pareto_figure(lines: pd.DataFrame, price_name: str) -> Figure:
    """Latency against cost of every setting, a panel for each temperature; a line joins those that no other beats.

    A larger mark is a larger batch. Labels on the front name batch size B and gamma.

    Args:
        lines: from `cost.with_front`, of one prompt length and output length.
        price_name: whose price it is and of which day.
    """
    labels: list[Label] = []

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        front = panel[panel["on_front"].astype(bool)]
        labels.extend((axes, n.tpot_ms, n.usd_per_million_tokens, setting_name(n)) for n in front.itertuples())
        axes.plot(front["tpot_ms"], front["usd_per_million_tokens"], color=MUTED, linewidth=1, zorder=1)
        for method, points in panel.groupby("method"):
            place = points["tpot_ms"], points["usd_per_million_tokens"]
            axes.scatter(*place, areas_of(points), alpha=0.75, **look_of(method))
        axes.set(xlabel=f"time per output token (ms)\n{price_name}", ylabel="US dollars per million tokens")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.08 * lines["usd_per_million_tokens"].max())

    figure = faceted(lines, "temperature", "Latency against cost", draw, named=temperature_name)
    label_points(figure, labels)
    return figure
