"""Throughput against latency: what a user gets, and what all of them get together."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.labels import Label, areas_of, label_points, setting_name
from specdec_lib.report.figures.style import MUTED, faceted, in_house_style, look_of


@in_house_style
def tradeoff_figure(lines: pd.DataFrame, width: float | None = None) -> Figure:
    """Total tokens per second against those of one user, a point for every setting; a line joins the frontier.

    A larger mark is a larger batch. Labels at the frontier name batch size B and gamma.

    Args:
        lines: from `tradeoff.tradeoff_lines`.
        width: of a panel, in inches; 3.9 for a narrow page.
    """
    labels: list[Label] = []

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        frontier = panel[panel["on_front"].astype(bool)].sort_values("user_tokens_per_second")
        labels.extend(
            (axes, n.user_tokens_per_second, n.tokens_per_second, setting_name(n)) for n in frontier.itertuples()
        )
        axes.plot(frontier["user_tokens_per_second"], frontier["tokens_per_second"], color=MUTED, linewidth=1, zorder=1)
        for method, points in panel.groupby("method"):
            place = points["user_tokens_per_second"], points["tokens_per_second"]
            axes.scatter(*place, areas_of(points), alpha=0.75, linewidth=0, **look_of(method))
        axes.set(xlabel="one user: 1000 / TPOT", ylabel="all users: tokens/s of calls")
        axes.set_xlim(0, 1.12 * lines["user_tokens_per_second"].max())
        axes.set_ylim(0, 1.12 * lines["tokens_per_second"].max())

    figure = faceted(
        lines, "temperature", "Throughput against latency", draw, named=temperature_name, columns=2, width=width
    )
    label_points(figure, labels)
    return figure
