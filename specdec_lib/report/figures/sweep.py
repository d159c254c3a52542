"""Figures of the latency study: each function takes a table and returns a Figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specdec_lib.analysis.crossover import crossing
from specdec_lib.analysis.metrics import DEVICE_MEMORY, memory_column
from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import GIB, temperature_name
from specdec_lib.report.figures.style import (
    AXIS_NAMES,
    by_method,
    color_of,
    empty_figure,
    in_house_style,
    legend,
    new_figure,
    titled,
    with_labels,
)

if TYPE_CHECKING:
    from specdec_lib.decoding.result import DecodeResult

DrawPanel = Callable[[Axes, pd.DataFrame], None]


@in_house_style
def speedup_figure(lines: pd.DataFrame, axis: str, predicted: pd.DataFrame | None = None) -> Figure:
    """Speedup with its 95 % interval along one axis, a panel for each temperature, a curve for each method.

    Along gamma a ring marks the best measured point. Along the batch size a cross marks where a curve falls through 1.

    Args:
        lines: from `headline.along(lines, params, axis)`.
        predicted: from `prediction.predicted_speedups`, drawn dashed.
    """
    lines = lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna()]
    known = lines.iloc[:0] if predicted is None else predicted[predicted["speedup"].notna()]

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        axes.axhline(1, color=color_of(AUTOREGRESSIVE), linewidth=1.2, label=label(AUTOREGRESSIVE))
        values = _curves(axes, panel, axis, "speedup")
        for index, (method, curve) in enumerate(panel.sort_values(axis, na_position="first").groupby("method")):
            places, color = _places(curve, axis, values), color_of(method)
            beside = places + 0.05 * (2 * index - 1)
            axes.vlines(beside, curve["speedup_low"], curve["speedup_high"], color=color, alpha=0.4, linewidth=1.6)
            same = (known["method"] == method) & (known["temperature"] == curve["temperature"].iloc[0])
            formula = known[same].sort_values(axis)
            if len(formula) > 1:
                name = f"{label(method)}, predicted"
                axes.plot(_places(formula, axis, values), formula["speedup"], "--", color=color, lw=1.3, label=name)
            if axis == "batch_size":
                _mark_crossing(axes, curve, places)
        if axis == "num_draft_tokens":
            _mark_best(axes, panel, values)

    title = f"Speedup by {AXIS_NAMES[axis]}"
    return _by_temperature(lines, title, "speedup over autoregressive (×)", draw, known)


@in_house_style
def tpot_figure(lines: pd.DataFrame, axis: str = "batch_size") -> Figure:
    """Time per output token along one axis, with the baseline; lines from `headline.along(lines, params, axis)`."""
    name = f"Time per output token by {AXIS_NAMES[axis]}"
    return _quantity_figure(lines.assign(value=lines["tpot_ms"]), axis, name, "time per output token (ms)")


@in_house_style
def memory_figure(lines: pd.DataFrame, axis: str = "batch_size") -> Figure:
    """Peak memory along one axis: allocated on the device or, on a CPU, resident in the process."""
    column = memory_column(lines)
    place = "device memory" if column == DEVICE_MEMORY else "memory of the process"
    lines = lines.assign(value=pd.to_numeric(lines[column]).astype(float) / GIB)
    return _quantity_figure(lines, axis, f"Peak memory by {AXIS_NAMES[axis]}", f"peak {place} (GiB)")


@in_house_style
def acceptance_figure(positions: pd.DataFrame) -> Figure:
    """Acceptance rate by position in the draft, given that all before it were accepted, with 95 % Wilson intervals.

    Args:
        positions: from `metrics.acceptance_by_position`, one gamma for each method.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        _lineplot(axes, panel, "position", "acceptance_rate")
        for index, (method, curve) in enumerate(panel.groupby("method")):
            low, high = _wilson(curve["accepted"].to_numpy(float), curve["tested"].to_numpy(float))
            beside = curve["position"] + 0.05 * (2 * index - 1)
            axes.vlines(beside, low, high, color=color_of(method), alpha=0.45, linewidth=1.4)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("position in the draft")

    tested = positions[positions["tested"] > 0]
    return _by_temperature(tested, "Acceptance by position in the draft", "accepted, if all before were", draw)


@in_house_style
def token_gap_figure(gaps: pd.DataFrame) -> Figure:
    """Share of tokens that come within a waiting time after the token before: an empirical distribution function.

    Args:
        gaps: from `metrics.token_gaps`, one gamma for each method.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        look = by_method(panel["method"])
        shown = {name: look[name] for name in ("hue", "hue_order", "palette")}
        sns.ecdfplot(with_labels(panel), x="gap_ms", **shown, ax=axes)
        for line, name in zip(axes.lines, reversed(look["hue_order"]), strict=True):  # seaborn draws the last one first
            line.set_label(name)
        limit = panel["gap_ms"].quantile(0.995) * 1.15
        axes.set_xlim(-0.02 * limit, max(limit, 1e-3))
        axes.set_xlabel("wait since the token before (ms)")

    return _by_temperature(gaps, "Waiting time before each token", "share of tokens", draw)


@in_house_style
def arrivals_figure(result: DecodeResult, baseline: DecodeResult) -> Figure:
    """Tokens of the first row over time, with and without speculation: steps of several tokens show as jumps."""
    figure, (axes,) = new_figure("Tokens over time (measured)", 1)
    for method, name, call in ((AUTOREGRESSIVE, "without", baseline), ("draft", "with speculation", result)):
        times = 1e3 * np.array(call.emission_times(0))
        name = f"{name}, {times[-1]:.0f} ms" if len(times) else name
        axes.step(times, np.arange(1, len(times) + 1), where="post", color=color_of(method), label=name)
    axes.set(xlabel="time since the call (ms)", ylabel="tokens")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    legend(figure)
    return figure


def _quantity_figure(lines: pd.DataFrame, axis: str, title: str, ylabel: str) -> Figure:
    """The column `value` of every method along an axis, from zero."""

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        _curves(axes, panel, axis, "value")
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * lines["value"].max()))

    return _by_temperature(lines[lines["value"].notna()], title, ylabel, draw)


def _by_temperature(table: pd.DataFrame, title: str, ylabel: str, draw: DrawPanel, *also: pd.DataFrame) -> Figure:
    """A panel for each temperature; `also` are further tables whose evidence the title names."""
    groups = list(table.groupby("temperature"))
    if not groups:
        return empty_figure(title)
    figure, panels = new_figure(titled(title, table, *also), len(groups))
    for axes, (temperature, panel) in zip(panels, groups, strict=True):
        draw(axes, panel)
        axes.set_title(temperature_name(temperature))
        axes.set_ylabel(ylabel)
    legend(figure)
    return figure


def _curves(axes: Axes, panel: pd.DataFrame, axis: str, value: str) -> list[int]:
    """A curve for each method over the values of an axis, evenly spaced; returns these. Natural prompts count as 0."""
    values = sorted(panel[axis].fillna(0).astype(int).unique())
    _lineplot(axes, panel.assign(place=_places(panel, axis, values)), "place", value)
    axes.set_xticks(range(len(values)), ["natural" if number == 0 else f"{number}" for number in values])
    axes.set_xlim(-0.3, len(values) - 0.7)
    axes.set_xlabel(AXIS_NAMES[axis])
    return values


def _lineplot(axes: Axes, panel: pd.DataFrame, x: str, y: str) -> None:
    look: dict[str, Any] = by_method(panel["method"]) | {"dashes": False, "errorbar": None}
    sns.lineplot(with_labels(panel), x=x, y=y, **look, ax=axes)


def _places(table: pd.DataFrame, axis: str, values: list[int]) -> np.ndarray:
    """Where the lines of a table lie on the evenly spaced axis."""
    return np.searchsorted(values, table[axis].fillna(0).astype(int))


def _mark_best(axes: Axes, panel: pd.DataFrame, values: list[int]) -> None:
    """A ring around the fastest measured point, with its gamma."""
    best = panel.loc[panel["speedup"].idxmax()]
    place, color = values.index(best["num_draft_tokens"]), color_of(best["method"])
    axes.plot(place, best["speedup"], "o", markersize=13, markerfacecolor="none", markeredgecolor=color)
    above: dict[str, Any] = {"xytext": (0, 12), "textcoords": "offset points", "ha": "center", "fontsize": 8.5}
    axes.annotate(f"best γ = {best['num_draft_tokens']}", (place, best["speedup"]), color=color, **above)


def _mark_crossing(axes: Axes, curve: pd.DataFrame, places: np.ndarray) -> None:
    """A cross where a curve falls through 1; `analysis.crossover` says at which batch size."""
    batches = curve["batch_size"].to_numpy(float)
    value = crossing(batches, np.log(curve["speedup"].to_numpy(float)))
    if 0 < value < np.inf:
        place = float(np.interp(np.log(value), np.log(batches), places))
        color = color_of(curve["method"].iloc[0])
        axes.plot(place, 1, "x", color=color, markersize=9, markeredgewidth=2, zorder=5)


def _wilson(successes: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share (Wilson 1927); passes are taken as independent."""
    z = 1.959964
    centre = (successes + z**2 / 2) / (trials + z**2)
    half = z / (trials + z**2) * np.sqrt(successes * (trials - successes) / trials + z**2 / 4)
    return centre - half, centre + half
