"""Figures of the comparison of GPUs. Measured points are filled, predicted ones hollow with their band."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import MARKERS, MUTED, PALETTE, faceted, in_house_style


@in_house_style
def crossover_figure(crossovers: pd.DataFrame) -> Figure:
    """B*, the batch size where the speedup falls to 1, by gamma: a panel for each study, a series for each setting.

    Bars are intervals or bands. Where the curve does not cross 1 there is no point.
    """
    crossovers = crossovers.dropna(subset=["crossover_batch"])
    crossovers = crossovers.assign(series=[_series(line) for line in crossovers.itertuples()])
    names = sorted(crossovers["series"].unique())

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        for name, lines in panel.groupby("series"):
            index = names.index(name)
            look = _look(index, lines["evidence"].iloc[0])
            x = lines["num_draft_tokens"].astype(float) + 0.08 * (index - (len(names) - 1) / 2)
            middle, low, high = (lines[f"crossover_batch{end}"].astype(float) for end in ("", "_low", "_high"))
            axes.vlines(x, low, high, color=look["edgecolor"], alpha=0.45, linewidth=2)
            axes.scatter(x, middle, zorder=3, label=name, **look)
        axes.set_xticks(panel["num_draft_tokens"].astype(int).unique())
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="number of draft tokens γ", ylabel="batch size B*")

    return faceted(crossovers, "gpu", "Batch size B* where speculation stops paying", draw, columns=2, height=2.5)


@in_house_style
def pareto_figure(lines: pd.DataFrame) -> Figure:
    """Time per token against dollars per million tokens, a panel for each pair; larger where no other beats both.

    Args:
        lines: from `comparison.pareto`.
    """
    studies = sorted(lines["gpu"].unique())

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        for (gpu, evidence), points in panel.groupby(["gpu", "evidence"]):
            sizes = np.where(points["on_front"].astype(bool), 46, 10)
            look = _look(studies.index(gpu), evidence)
            name = f"{gpu} ({evidence})"
            axes.scatter(points["tpot_ms"], points["usd_per_million_tokens"], sizes, label=name, alpha=0.7, **look)
        for _, front in panel[panel["on_front"].astype(bool)].groupby(["temperature", "evidence"], dropna=False):
            axes.plot(front["tpot_ms"], front["usd_per_million_tokens"], color=MUTED, linewidth=1, zorder=1)
        axes.set(xscale="log", yscale="log")
        axes.set(xlabel="time per output token (ms)", ylabel="US dollars per million tokens")

    return faceted(lines, "pair", "Latency against cost", draw, columns=2, sharey=False)


def _look(index: int, evidence: str) -> dict[str, Any]:
    """Colour, marker and face of a series: measured points are filled."""
    color = PALETTE[index % len(PALETTE)]
    face = color if evidence == "measured" else "white"
    return {"edgecolor": color, "marker": MARKERS[index % len(MARKERS)], "facecolor": face}


def _series(line: Any) -> str:
    prompt = "natural prompts" if pd.isna(line.prompt_tokens) else f"{line.prompt_tokens:.0f} prompt tokens"
    return f"{label(line.method)}, {prompt}, {temperature_name(line.temperature)}"
