"""Figures of target passes: how many tokens each emits, and what a batch does to the best number of draft tokens."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.heatmap import color_span, speedup_heatmap
from specdec_lib.report.figures.style import AXIS_NAMES, faceted, in_house_style, label_left, look_of


@in_house_style
def passes_histogram(passes: pd.DataFrame) -> Figure:
    """The share of target passes that emitted 1, 2, ... tokens, a panel for each temperature.

    Args:
        passes: from `passes.tokens_per_pass`, one gamma for each method.
    """
    passes = passes[passes["passes"].groupby([passes["method"], passes["temperature"]]).transform("sum") > 0]
    methods = sorted(passes["method"].unique())
    colors = {method: look_of(method)["color"] for method in methods}

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        which = {"hue": "method", "hue_order": methods, "palette": colors, "saturation": 1}
        sns.barplot(panel, x="tokens", y="share", width=0.8, legend=False, ax=axes, **which)
        for method in methods:
            axes.scatter([], [], s=60, marker="s", color=colors[method], label=label(method))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, 1)
        axes.set_xlabel("tokens of a target pass")
        label_left(axes, "share of the passes")

    figure = faceted(passes, "temperature", "Tokens per target pass", draw, named=temperature_name, height=2.5)
    if len(passes):
        figure.set_figwidth(max(4.6, 2.9 * min(passes["temperature"].nunique(), 3)))
    return figure


@in_house_style
def gamma_batch_heatmap(lines: pd.DataFrame) -> Figure:
    """Speedup by number of draft tokens and batch size, a panel for each method and temperature.

    A cell that was not measured stays blank.

    Args:
        lines: from `headline.every_batch(lines, params)`.
    """
    known = lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna()]
    gammas, batches = (sorted(known[name].unique()) for name in ("num_draft_tokens", "batch_size"))
    panels = list(known.groupby(["temperature", "method"]).groups)
    keys = zip(known["temperature"], known["method"], strict=True)
    known = known.assign(panel=[panels.index(key) for key in keys])
    span = color_span(known["speedup"])

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        cells = panel.pivot_table("speedup", "batch_size", "num_draft_tokens", aggfunc="first")
        cells = cells.reindex(index=batches[::-1], columns=gammas)
        speedup_heatmap(axes, cells, cells.map("{:.2f}".format), span)
        axes.set_xlabel(AXIS_NAMES["num_draft_tokens"])
        label_left(axes, "batch size")

    columns = min(max(known["method"].nunique(), 1), 3)
    named = {place: f"{label(method)}, {temperature_name(T)}" for place, (T, method) in enumerate(panels)}
    title = "Speedup (×) by γ and batch size"
    height = 0.85 + 0.34 * len(batches)
    figure = faceted(known, "panel", title, draw, named=named.__getitem__, columns=columns, height=height)
    if len(known):
        figure.set_figwidth(max(4.6, 0.6 + columns * max(2.3, 0.55 * len(gammas))))
    return figure
