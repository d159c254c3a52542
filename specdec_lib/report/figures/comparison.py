"""Figures of the comparison of GPUs: a colour is a method. Measured points are filled, predicted ones hollow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import DARK, MARKERS, MUTED, faceted, in_house_style, look_of

SHAPES = (*MARKERS, "X", "*", "<", ">")


@in_house_style
def crossover_figure(crossovers: pd.DataFrame) -> Figure:
    """B*, the batch size where the speedup falls to 1, by gamma: a panel for each study, a series for each setting.

    The marker tells the prompts and the temperature. Bars are intervals or bands. Where the curve does not cross 1
    there is no point.
    """
    every, crossovers = crossovers, crossovers.dropna(subset=["crossover_batch"])
    crossovers = crossovers.assign(setting=[_setting(line) for line in crossovers.itertuples()])
    settings = sorted(crossovers["setting"].unique())

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        gammas = sorted(panel["num_draft_tokens"].astype(int).unique())
        series = list(panel.groupby(["method", "setting"]))
        for number, ((method, setting), lines) in enumerate(series):
            look = _look(method, settings.index(setting), lines["evidence"].iloc[0])
            apart = min(0.12, 0.7 / len(series)) * (number - (len(series) - 1) / 2)
            x = lines["num_draft_tokens"].astype(float) + apart
            middle, low, high = (lines[f"crossover_batch{end}"].astype(float) for end in ("", "_low", "_high"))
            axes.vlines(x, low, high, color=look["edgecolor"], alpha=0.45, linewidth=2)
            axes.scatter(x, middle, zorder=3, label=f"{look_of(method)['label']}, {setting}", **look)
        axes.set_xticks(gammas)
        axes.set_xlim(gammas[0] - 0.6, gammas[-1] + 0.6)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="number of draft tokens γ", ylabel="batch size B*")

    title = "Batch size B* where speculation stops paying"
    return faceted(crossovers, "gpu", title, draw, also=every, columns=2, height=2.5)


@in_house_style
def pareto_figure(lines: pd.DataFrame) -> Figure:
    """Time per token against dollars per million tokens, a panel for each pair; larger where no other beats both.

    The marker tells the study.

    Args:
        lines: from `comparison.pareto`.
    """
    studies = sorted(lines["gpu"].unique())

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        for (gpu, method, evidence), points in panel.groupby(["gpu", "method", "evidence"]):
            sizes = np.where(points["on_front"].astype(bool), 46, 10)
            look = _look(method, studies.index(gpu), evidence)
            axes.scatter(points["tpot_ms"], points["usd_per_million_tokens"], sizes, alpha=0.7, **look)
        for _, front in panel[panel["on_front"].astype(bool)].groupby(["temperature", "evidence"], dropna=False):
            axes.plot(front["tpot_ms"], front["usd_per_million_tokens"], color=MUTED, linewidth=1, zorder=1)
        for method in lines["method"].unique():
            axes.plot([], [], linewidth=5, color=look_of(method)["color"], label=look_of(method)["label"])
        for gpu, evidence in lines[["gpu", "evidence"]].drop_duplicates().itertuples(index=False):
            look = _look(None, studies.index(gpu), evidence)
            axes.scatter([], [], label=f"{gpu} ({evidence})", **look)
        axes.set(xscale="log", yscale="log")
        _plain_ticks(axes.xaxis, panel["tpot_ms"])
        _plain_ticks(axes.yaxis, panel["usd_per_million_tokens"])
        axes.set(xlabel="time per output token (ms)", ylabel="US dollars per million tokens")

    return faceted(lines, "pair", "Latency against cost", draw, columns=2, sharey=False)


def _plain_ticks(axis: Axis, values: pd.Series) -> None:
    """Ticks of a logarithmic axis as plain numbers; evenly spaced ones where the values are close together."""
    close = values.max() < 4 * values.min()
    axis.set_major_locator(MaxNLocator(5) if close else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _look(method: str | None, shape: int, evidence: str) -> dict[str, Any]:
    """Colour, marker and face of a series: measured points are filled, and what is of no method is dark."""
    color = look_of(method)["color"] if method else DARK
    face = color if evidence == "measured" else "white"
    return {"edgecolor": color, "marker": SHAPES[shape % len(SHAPES)], "facecolor": face}


def _setting(line: Any) -> str:
    prompt = "natural prompts" if pd.isna(line.prompt_tokens) else f"{line.prompt_tokens:.0f} prompt tokens"
    return f"{prompt}, {temperature_name(line.temperature)}"
