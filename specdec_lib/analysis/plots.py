"""Figures: each function takes a table and returns a matplotlib Figure. `findings` says in a sentence what it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specdec_lib.analysis.metrics import BASELINE
from specdec_lib.analysis.style import (
    AXIS_NAMES,
    METHOD_COLORS,
    METHOD_MARKERS,
    METHOD_NAMES,
    EndLabel,
    in_house_style,
    label_ends,
    new_figure,
    temperature_name,
)

GIB = 2**30
DrawPanel = Callable[[Axes, pd.DataFrame], list[EndLabel]]


@in_house_style
def speedup_figure(lines: pd.DataFrame, axis: str) -> Figure:
    """Speedup with its 95 % interval along one axis, a panel for each temperature, a curve for each method.

    Along gamma a dotted curve shows the ceiling: tokens emitted per target pass, the speedup if drafting were free and
    verifying cost no more than decoding one token.

    Args:
        lines: from `metrics.along(lines, params, axis)`.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> list[EndLabel]:
        axes.axhline(1, color=METHOD_COLORS[BASELINE], linewidth=1.2)
        labels = [EndLabel(1, METHOD_NAMES[BASELINE], METHOD_COLORS[BASELINE])]
        for method, curve, x in _curves(axes, panel, axis):
            labels.append(_plot(axes, method, x, curve["speedup"]))
            low, high = curve["speedup_low"], curve["speedup_high"]
            axes.fill_between(x, low, high, color=METHOD_COLORS[method], alpha=0.16, linewidth=0)
            if axis == "num_draft_tokens":
                ceiling = curve["mean_acceptance_length"]
                axes.plot(x, ceiling, ":", color=METHOD_COLORS[method], linewidth=1.3)
                labels.append(EndLabel(ceiling.iloc[-1], f"{METHOD_NAMES[method]}, if free", METHOD_COLORS[method]))
        return labels

    methods = lines[lines["method"] != BASELINE]
    return _by_temperature(methods, f"Speedup by {AXIS_NAMES[axis]}", "speedup over autoregressive (×)", draw)


@in_house_style
def tpot_figure(lines: pd.DataFrame, axis: str = "batch_size") -> Figure:
    """Time per output token along one axis, with the baseline; lines from `metrics.along(lines, params, axis)`."""
    return _quantity_figure(
        lines, axis, lines["tpot_ms"], f"Time per output token by {AXIS_NAMES[axis]}", "time per output token (ms)"
    )


@in_house_style
def memory_figure(lines: pd.DataFrame, axis: str = "batch_size") -> Figure:
    """Peak memory along one axis: allocated on the device or, on a CPU, resident in the process."""
    column = memory_column(lines)
    place = "device memory" if column == "peak_memory_allocated_bytes" else "memory of the process"
    gibibytes = pd.to_numeric(lines[column]) / GIB
    return _quantity_figure(lines, axis, gibibytes, f"Peak memory by {AXIS_NAMES[axis]}", f"peak {place} (GiB)")


def memory_column(lines: pd.DataFrame) -> str:
    """The column that holds the memory of this device: a CPU run has no device memory."""
    on_device = lines["peak_memory_allocated_bytes"].notna().any()
    return "peak_memory_allocated_bytes" if on_device else "process_peak_rss_bytes"


@in_house_style
def acceptance_figure(positions: pd.DataFrame) -> Figure:
    """Acceptance rate by position in the draft, given that all before it were accepted, with 95 % Wilson intervals.

    Args:
        positions: from `metrics.acceptance_by_position`, one gamma for each method.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> list[EndLabel]:
        labels = []
        methods = list(panel.groupby("method"))
        for index, (method, curve) in enumerate(methods):
            curve = curve[curve["tested"] > 0].sort_values("position")
            x = curve["position"] + 0.08 * (index - (len(methods) - 1) / 2)
            low, high = _wilson(curve["accepted"].to_numpy(float), curve["tested"].to_numpy(float))
            axes.vlines(x, low, high, color=METHOD_COLORS[method], alpha=0.45, linewidth=1.4)
            labels.append(_plot(axes, method, x, curve["acceptance_rate"]))
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("position in the draft")
        return labels

    return _by_temperature(positions, "Acceptance by position in the draft", "accepted, if all before were", draw)


@in_house_style
def token_gap_figure(gaps: pd.DataFrame) -> Figure:
    """Share of tokens that come within a waiting time after the token before: an empirical distribution function.

    Args:
        gaps: from `metrics.token_gaps`, one gamma for each method.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> list[EndLabel]:
        limit = panel["gap_ms"].quantile(0.995) * 1.15
        for index, (method, group) in enumerate(panel.groupby("method")):
            waits = np.sort(group["gap_ms"].to_numpy())
            share = np.arange(1, waits.size + 1) / waits.size
            x, y = np.concatenate([[0], waits, [limit]]), np.concatenate([[0], share, [1]])
            axes.step(x, y, where="post", color=METHOD_COLORS[method])
            style: dict[str, Any] = {"color": METHOD_COLORS[method], "ha": "right", "transform": axes.transAxes}
            axes.text(0.98, 0.26 - 0.09 * index, METHOD_NAMES[method], **style)
        axes.set_xlim(-0.02 * limit, limit)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("wait since the token before (ms)")
        return []

    return _by_temperature(gaps, "Waiting time before each token", "share of tokens", draw)


@in_house_style
def cost_figure(costs: pd.DataFrame, price_name: str) -> Figure:
    """Dollars per million tokens, and the price ratio at which speculation breaks even, one row per method.

    Args:
        costs: from `cost.cost_table`, one gamma for each method.
        price_name: whose price it is and of which day; printed below the axis.
    """
    costs = costs.sort_values(["temperature", "method"], ascending=[False, False]).reset_index(drop=True)
    title = _titled(costs, "Cost of a million tokens")
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


def _quantity_figure(lines: pd.DataFrame, axis: str, values: pd.Series, title: str, ylabel: str) -> Figure:
    """One quantity of every method along an axis, from zero."""

    def draw(axes: Axes, panel: pd.DataFrame) -> list[EndLabel]:
        return [_plot(axes, method, x, values[curve.index]) for method, curve, x in _curves(axes, panel, axis)]

    return _by_temperature(lines, title, ylabel, draw, bottom=0)


def _by_temperature(
    table: pd.DataFrame, title: str, ylabel: str, draw: DrawPanel, bottom: float | None = None
) -> Figure:
    """A panel for each temperature, drawn by `draw`, which returns the labels of its curves."""
    groups = list(table.groupby("temperature"))
    if not groups:
        raise ValueError(f"nothing was measured for the figure '{title}': look at the failed cells")
    figure, panels = new_figure(_titled(table, title), len(groups))
    labels = [draw(axes, panel) for axes, (_, panel) in zip(panels, groups, strict=True)]
    if bottom is not None:
        panels[0].set_ylim(bottom, panels[0].get_ylim()[1] * 1.04)
    panels[0].set_ylabel(ylabel)
    for axes, (temperature, _), texts in zip(panels, groups, labels, strict=True):
        axes.set_title(temperature_name(temperature))
        label_ends(axes, texts)
    return figure


def _titled(table: pd.DataFrame, title: str) -> str:
    return f"{title} ({', '.join(sorted(table['evidence'].unique()))})"


def _curves(axes: Axes, panel: pd.DataFrame, axis: str) -> list[tuple[str, pd.DataFrame, np.ndarray]]:
    """The curve of each method and where its points lie on an x axis that spaces the values evenly."""
    values = sorted(panel[axis].fillna(0).astype(int).unique())
    axes.set_xticks(range(len(values)), ["natural" if value == 0 else f"{value}" for value in values])
    axes.set_xlim(-0.3, len(values) - 0.7)
    axes.set_xlabel(AXIS_NAMES[axis])
    curves = [(method, curve.sort_values(axis, na_position="first")) for method, curve in panel.groupby("method")]
    return [(name, curve, np.searchsorted(values, curve[axis].fillna(0).astype(int))) for name, curve in curves]


def _plot(axes: Axes, method: str, x: np.ndarray | pd.Series, y: pd.Series) -> EndLabel:
    color = METHOD_COLORS[method]
    axes.plot(x, y, color=color, marker=METHOD_MARKERS[method], markeredgecolor="white", markeredgewidth=0.8)
    return EndLabel(float(y.iloc[-1]), METHOD_NAMES[method], color)


def _wilson(successes: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share (Wilson 1927); passes are taken as independent."""
    z = 1.959964
    centre = (successes + z**2 / 2) / (trials + z**2)
    half = z / (trials + z**2) * np.sqrt(successes * (trials - successes) / trials + z**2 / 4)
    return centre - half, centre + half
