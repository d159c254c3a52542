"""Figures: each function takes a table and returns a matplotlib Figure. `findings` says in a sentence what it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specdec_lib.analysis.crossover import crossing
from specdec_lib.analysis.metrics import BASELINE, memory_column
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.report.figures.style import (
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
def speedup_figure(lines: pd.DataFrame, axis: str, predicted: pd.DataFrame | None = None) -> Figure:
    """Speedup with its 95 % interval along one axis, a panel for each temperature, a curve for each method.

    Along gamma a ring marks the best measured point. Along the batch size a cross marks where a curve falls through 1.

    Args:
        lines: from `metrics.along(lines, params, axis)`.
        predicted: from `prediction.predicted_speedups`, drawn dashed.
    """
    methods = lines[lines["method"] != BASELINE]
    by_gamma = axis == "num_draft_tokens"
    known = methods.iloc[:0] if predicted is None else predicted[predicted["speedup"].notna()]

    def draw(axes: Axes, panel: pd.DataFrame) -> list[EndLabel]:
        axes.axhline(1, color=METHOD_COLORS[BASELINE], linewidth=1.2)
        labels = [EndLabel(1, METHOD_NAMES[BASELINE], METHOD_COLORS[BASELINE])]
        for index, (method, curve, x) in enumerate(_curves(axes, panel, axis)):
            labels.append(_plot(axes, method, x, curve["speedup"]))
            beside = x + 0.05 * (2 * index - 1)
            interval: dict[str, Any] = {"color": METHOD_COLORS[method], "alpha": 0.4, "linewidth": 1.6}
            axes.vlines(beside, curve["speedup_low"], curve["speedup_high"], **interval)
            here = known[known["method"] == method]
            here = here[here["temperature"] == panel["temperature"].iloc[0]].sort_values(axis)
            if len(here) > 1:
                known_x = x[curve[axis].isin(here[axis]).to_numpy(bool)]
                axes.plot(known_x, here["speedup"], "--", color=METHOD_COLORS[method], linewidth=1.3)
                text = f"{METHOD_NAMES[method]}, predicted"
                labels.append(EndLabel(here["speedup"].iloc[-1], text, METHOD_COLORS[method]))
            if axis == "batch_size":
                _mark_crossing(axes, curve, x, 7 if index == 0 else -13)
        if by_gamma and panel["speedup"].notna().any():
            _mark_best(axes, panel)
        return labels

    title = titled(pd.concat([methods, known]), f"Speedup by {AXIS_NAMES[axis]}")
    return by_temperature(methods, title, "speedup over autoregressive (×)", draw)


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

    return by_temperature(positions, "Acceptance by position in the draft", "accepted, if all before were", draw)


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

    return by_temperature(gaps, "Waiting time before each token", "share of tokens", draw)


@in_house_style
def arrivals_figure(result: DecodeResult, baseline: DecodeResult) -> Figure:
    """Tokens of the first row over time, with and without speculation: steps of several tokens show as jumps."""
    figure, (axes,) = new_figure("Tokens over time (measured)", 1)
    labels = []
    for method, call in ((BASELINE, baseline), ("draft", result)):
        times = 1e3 * np.array(call.emission_times(0))
        axes.step(times, np.arange(1, len(times) + 1), where="post", color=METHOD_COLORS[method])
        name = "with speculation" if method == "draft" else "without"
        labels.append(EndLabel(float(len(times)), f"{name}, {times[-1]:.0f} ms", METHOD_COLORS[method]))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time since the call (ms)")
    axes.set_ylabel("tokens")
    label_ends(axes, labels)
    return figure


def _mark_best(axes: Axes, panel: pd.DataFrame) -> None:
    """A ring around the fastest measured point, with its gamma."""
    best = panel.loc[panel["speedup"].idxmax()]
    place = sorted(panel["num_draft_tokens"].unique()).index(best["num_draft_tokens"])
    color = METHOD_COLORS[best["method"]]
    axes.plot(place, best["speedup"], "o", markersize=13, markerfacecolor="none", markeredgecolor=color)
    above: dict[str, Any] = {"xytext": (0, 12), "textcoords": "offset points", "ha": "center", "fontsize": 8.5}
    above["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    axes.annotate(f"best γ = {best['num_draft_tokens']}", (place, best["speedup"]), color=color, **above)


def _mark_crossing(axes: Axes, curve: pd.DataFrame, x: np.ndarray, offset: float) -> None:
    """A cross and the batch size where a curve falls through 1."""
    values = curve["batch_size"].to_numpy(float)
    value = crossing(values, np.log(curve["speedup"].to_numpy(float)))
    if 0 < value < np.inf:
        place = float(np.interp(np.log(value), np.log(values), x))
        color = METHOD_COLORS[curve["method"].iloc[0]]
        axes.plot(place, 1, "x", color=color, markersize=9, markeredgewidth=2, zorder=5)
        beside: dict[str, Any] = {"xytext": (5, offset), "textcoords": "offset points", "fontsize": 8.5}
        axes.annotate(f"batch {value:.2g}", (place, 1), color=color, **beside)


def _quantity_figure(lines: pd.DataFrame, axis: str, values: pd.Series, title: str, ylabel: str) -> Figure:
    """One quantity of every method along an axis, from zero."""

    def draw(axes: Axes, panel: pd.DataFrame) -> list[EndLabel]:
        return [_plot(axes, method, x, values[curve.index]) for method, curve, x in _curves(axes, panel, axis)]

    return by_temperature(lines, title, ylabel, draw, bottom=0)


def by_temperature(
    table: pd.DataFrame, title: str, ylabel: str, draw: DrawPanel, bottom: float | None = None
) -> Figure:
    """A panel for each temperature, drawn by `draw`, which returns the labels of its curves."""
    groups = list(table.groupby("temperature"))
    if not groups:
        raise ValueError(f"nothing was measured for the figure '{title}': look at the failed cells")
    figure, panels = new_figure(title if title.endswith(")") else titled(table, title), len(groups))
    labels = [draw(axes, panel) for axes, (_, panel) in zip(panels, groups, strict=True)]
    if bottom is not None:
        panels[0].set_ylim(bottom, panels[0].get_ylim()[1] * 1.04)
    panels[0].set_ylabel(ylabel)
    for axes, (temperature, _), texts in zip(panels, groups, labels, strict=True):
        axes.set_title(temperature_name(temperature))
        label_ends(axes, texts)
    return figure


def titled(table: pd.DataFrame, title: str) -> str:
    """A title that says what kinds of evidence the figure shows."""
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
