"""Figures of the latency study: each function takes a table and returns a Figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import binomtest

from specdec_lib.analysis.metrics import DEVICE_MEMORY, memory_column
from specdec_lib.analysis.sweep.crossover import crossing
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.report.captions.phrases import GIB, temperature_name
from specdec_lib.report.figures.style import (
    AXIS_NAMES,
    faceted,
    in_house_style,
    look_of,
)


@in_house_style
def speedup_figure(
    lines: pd.DataFrame, axis: str, predicted: pd.DataFrame | None = None, width: float | None = None
) -> Figure:
    """Speedup with its 95 % interval along one axis, a panel for each temperature, a curve for each method.

    Along gamma a ring marks the best measured point. Along the batch size a cross marks where a curve falls through 1.

    Args:
        lines: from `headline.along(lines, params, axis)`.
        predicted: from `prediction.predicted_speedups`, drawn dashed.
        width: of a panel, in inches.
    """
    lines = lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna()]
    known = lines.iloc[:0] if predicted is None else predicted[predicted["speedup"].notna()]

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        axes.axhline(1, color=look_of(AUTOREGRESSIVE)["color"], linewidth=1.2, label="autoregressive")
        values = _curves(axes, panel, axis, "speedup")
        for method, formula in known[known["temperature"] == panel["temperature"].iloc[0]].groupby("method"):
            look = look_of(method) | {"marker": "", "label": f"{look_of(method)['label']}, predicted"}
            axes.plot(_places(formula, axis, values), formula["speedup"], "--", linewidth=1.3, **look)
        if axis == "num_draft_tokens":
            _mark_best(axes, panel, values)
        if axis == "batch_size":
            _mark_crossings(axes, panel, values)
        axes.set_ylabel("speedup over autoregressive (×)")

    title = f"Speedup by {AXIS_NAMES[axis]}"
    return faceted(lines, "temperature", title, draw, named=temperature_name, also=known, width=width)


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

    Passes are taken as independent.

    Args:
        positions: from `metrics.acceptance_by_position`, one gamma for each method.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        for method, curve in panel.groupby("method"):
            counts = zip(curve["accepted"], curve["tested"], strict=True)
            ends = [binomtest(int(a), int(n)).proportion_ci(method="wilson") for a, n in counts]
            low, high = zip(*ends, strict=True)
            axes.plot(curve["position"], curve["acceptance_rate"], **look_of(method))
            axes.vlines(curve["position"], low, high, color=look_of(method)["color"], alpha=0.45, linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(ylim=(0, 1), xlabel="position in the draft", ylabel="accepted, if all before were")

    tested = positions[positions["tested"] > 0]
    return faceted(tested, "temperature", "Acceptance by position in the draft", draw, named=temperature_name)


def _quantity_figure(lines: pd.DataFrame, axis: str, title: str, ylabel: str) -> Figure:
    """The column `value` of every method along an axis, from zero."""

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        _curves(axes, panel, axis, "value")
        axes.set_ylim(0, 1.05 * lines["value"].max())
        axes.set_ylabel(ylabel)

    return faceted(lines[lines["value"].notna()], "temperature", title, draw, named=temperature_name)


def _curves(axes: Axes, panel: pd.DataFrame, axis: str, value: str) -> list[int]:
    """A curve for each method over the values of an axis, evenly spaced; returns these. Natural prompts count as 0."""
    values = sorted(panel[axis].fillna(0).astype(int).unique())
    for method, curve in panel.sort_values(axis, na_position="first").groupby("method"):
        places, look = _places(curve, axis, values), look_of(method)
        axes.plot(places, curve[value], **look)
        if f"{value}_low" in curve:
            ends = (curve[f"{value}_{end}"] for end in ("low", "high"))
            axes.vlines(places, *ends, color=look["color"], alpha=0.4, linewidth=1.6)
    axes.set_xticks(range(len(values)), ["natural" if number == 0 else f"{number}" for number in values])
    axes.set_xlim(-0.3, len(values) - 0.7)
    axes.set_xlabel(AXIS_NAMES[axis])
    return values


def _places(table: pd.DataFrame, axis: str, values: list[int]) -> np.ndarray:
    """Where the lines of a table lie on the evenly spaced axis."""
    return np.searchsorted(values, table[axis].fillna(0).astype(int))


def _mark_best(axes: Axes, panel: pd.DataFrame, values: list[int]) -> None:
    """A ring around the fastest measured point, with its gamma."""
    best = panel.loc[panel["speedup"].idxmax()]
    place, color = values.index(best["num_draft_tokens"]), look_of(best["method"])["color"]
    axes.plot(place, best["speedup"], "o", markersize=13, markerfacecolor="none", markeredgecolor=color)
    above: dict[str, Any] = {"xytext": (0, 12), "textcoords": "offset points", "ha": "center", "fontsize": 8.5}
    axes.annotate(f"best γ = {best['num_draft_tokens']}", (place, best["speedup"]), color=color, **above)


def _mark_crossings(axes: Axes, panel: pd.DataFrame, values: list[int]) -> None:
    """A cross where a curve falls through 1; `analysis.sweep.crossover` says at which batch size."""
    for method, curve in panel.sort_values("batch_size").groupby("method"):
        batches = curve["batch_size"].to_numpy(float)
        value = crossing(batches, np.log(curve["speedup"].to_numpy(float)))
        if 0 < value < np.inf:
            place = np.interp(np.log(value), np.log(values), range(len(values)))
            axes.plot(place, 1, "x", color=look_of(method)["color"], markersize=9, markeredgewidth=2, zorder=5)
