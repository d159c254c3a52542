"""Figures of what is decoded: speedup and acceptance by the category of the prompts."""

from __future__ import annotations

import textwrap

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.heatmap import color_span, speedup_heatmap
from specdec_lib.report.figures.style import faceted, in_house_style, label_left, look_of

QUANTITIES = {"acceptance_rate": "acceptance rate α", "mean_acceptance_length": "tokens per target pass"}


@in_house_style
def category_heatmap(lines: pd.DataFrame) -> Figure:
    """Speedup of each method in each category and the number of prompt groups, a panel for each temperature.

    Args:
        lines: from `categories.category_lines`.
    """
    known = lines[lines["speedup"].notna()]
    order, methods, span = _order(known), sorted(known["method"].unique()), color_span(known["speedup"])
    names = {method: textwrap.fill(label(method), 9, break_long_words=False) for method in methods}

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        texts = [f"{line.speedup:.2f}\nn={line.num_prompts}" for line in panel.itertuples()]
        cells = panel.assign(text=texts).pivot_table(["speedup", "text"], "category", "method", aggfunc="first")
        cells = cells.reindex(index=order, columns=pd.MultiIndex.from_product([["speedup", "text"], methods]))
        speedup_heatmap(axes, cells["speedup"].rename(columns=names), cells["text"], span)
        axes.set_xlabel("method (n: prompts)")
        label_left(axes, "category of the prompts")

    title = "Speedup (×) by category"
    figure = faceted(known, "temperature", title, draw, named=temperature_name, height=0.9 + 0.44 * len(order))
    if len(known):
        figure.set_figwidth(max(4.6, 1.2 + 0.75 * len(methods) * known["temperature"].nunique()))
    return figure


@in_house_style
def category_strip(ratios: pd.DataFrame) -> Figure:
    """Speedup of every single prompt group by category and method, with the median, a panel for each temperature.

    Args:
        ratios: from `categories.prompt_ratios`.
    """
    order, methods = _order(ratios), sorted(ratios["method"].unique())

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        axes.axhline(1, color=look_of(AUTOREGRESSIVE)["color"], linewidth=1.2, label="autoregressive")
        for place, method in enumerate(methods):
            own, look = panel[panel["method"] == method], look_of(method)
            grouped = {"order": order, "hue": "method", "hue_order": methods, "dodge": True, "legend": False}
            drawn = {"palette": [look["color"]] * len(methods), "marker": look["marker"], "size": 6, "alpha": 0.75}
            if len(own):
                sns.stripplot(own, x="category", y="speedup", jitter=0.06, ax=axes, **grouped, **drawn)
            axes.plot([], [], linestyle="none", **look)
            _mark_medians(axes, own, order, (place + 0.5) / len(methods) - 0.5, 0.36 / len(methods), look["color"])
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_locator(LogLocator(2, subs=(1, 1.5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.set_xticks(range(len(order)), order)
        axes.set(xlim=(-0.5, len(order) - 0.5), xlabel="category of the prompts", ylabel="speedup (×)")

    several = ratios.duplicated(["temperature", "method", "category"]).any()
    title = f"Speedup of every single prompt{', bar: median' if several else ''}"
    return faceted(ratios, "temperature", title, draw, named=temperature_name, columns=1, height=2.6)


@in_house_style
def acceptance_by_category(lines: pd.DataFrame) -> Figure:
    """Acceptance rate (above) and tokens per target pass (below) by category, a column for each temperature.

    Args:
        lines: from `categories.category_lines`.
    """
    known = lines[lines["mean_acceptance_length"].notna()]
    order, methods = _order(known), sorted(known["method"].unique())
    colors = {method: look_of(method)["color"] for method in methods}
    long = known.melt(["temperature", "category", "method", "evidence"], list(QUANTITIES), "quantity")
    panels = list(long.groupby(["quantity", "temperature"]).groups)
    long["panel"] = [panels.index(key) for key in zip(long["quantity"], long["temperature"], strict=True)]

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        quantity = panel["quantity"].iloc[0]
        which = {"order": order, "hue": "method", "hue_order": methods, "palette": colors, "saturation": 1}
        sns.barplot(panel, y="category", x="value", orient="y", width=0.75, legend=False, ax=axes, **which)
        for method in methods:
            axes.scatter([], [], s=60, marker="s", color=colors[method], label=label(method))
        if quantity == "mean_acceptance_length":
            axes.axvline(1, color=look_of(AUTOREGRESSIVE)["color"], linewidth=1.2, label="autoregressive")
        axes.set_xlim(0, 1 if quantity == "acceptance_rate" else 1.05 * known[quantity].max())
        axes.set_xlabel(QUANTITIES[quantity])
        label_left(axes, "category")

    columns = max(known["temperature"].nunique(), 1)
    height = 0.8 + 0.3 * len(order)
    title = "Acceptance and tokens per target pass by category"
    named = {place: temperature_name(temperature) for place, (_, temperature) in enumerate(panels)}
    return faceted(long, "panel", title, draw, named=named.__getitem__, columns=columns, height=height)


def _order(lines: pd.DataFrame) -> list[str]:
    """The categories, those with the largest speedup first: the same order in every figure of a run."""
    return lines.groupby("category")["speedup"].max().sort_values(ascending=False, kind="stable").index.tolist()


def _mark_medians(
    axes: Axes, ratios: pd.DataFrame, order: list[str], shift: float, half_width: float, color: str
) -> None:
    """A bar at the median of each category that has several prompts, next to where seaborn puts their points."""
    for category, values in ratios.groupby("category")["speedup"]:
        if len(values) > 1:
            middle = order.index(category) + 0.8 * shift  # seaborn spreads the methods over 0.8 of a category
            axes.hlines(values.median(), middle - half_width, middle + half_width, color=color, linewidth=2.2)
