"""Figures of the comparison of GPUs. Measured points are filled, predicted ones hollow with their band."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from specdec_lib.analysis import crossover
from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import (
    DARK,
    MARKERS,
    MUTED,
    PALETTE,
    empty_figure,
    in_house_style,
    legend,
    new_figure,
    titled,
)

ARROWS = {  # where the curve does not fall through 1: the arrow, and the batch size that it stands at
    crossover.NEVER: ("$\\downarrow$", "smallest_batch"),
    crossover.LATER: ("$\\updownarrow$", "largest_batch"),
    crossover.ALWAYS: ("$\\uparrow$", "largest_batch"),
}


@in_house_style
def crossover_figure(crossovers: pd.DataFrame) -> Figure:
    """B*, the batch size where the speedup falls to 1, by gamma: a panel for each study, a series for each setting."""
    title, studies = "Batch size B* where speculation stops paying", list(crossovers.groupby("gpu"))
    if not studies:
        return empty_figure(title)
    figure, panels = new_figure(titled(title, crossovers), len(studies), columns=2, height=2.5)
    names = crossovers.apply(_series, axis=1)
    order = sorted(names.unique())
    for axes, (gpu, study) in zip(panels, studies, strict=True):
        for name, series in study.groupby(names[study.index]):
            _draw_crossovers(axes, series, order.index(name), len(order), str(name))
        axes.set_xticks(study["num_draft_tokens"].dropna().astype(int).unique())
        axes.set_title(f"{gpu} ({', '.join(study['evidence'].unique())})")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="number of draft tokens γ", ylabel="batch size B*")
    legend(figure)
    return figure


@in_house_style
def pareto_figure(lines: pd.DataFrame) -> Figure:
    """Time per token against dollars per million tokens; a line joins the settings that no other beats in both.

    Args:
        lines: from `comparison.pareto`.
    """
    if lines.empty:
        return empty_figure("Latency against cost")
    figure, (axes,) = new_figure(titled("Latency against cost", lines), 1, height=3.8)
    for index, (key, group) in enumerate(lines.groupby(["gpu", "pair", "evidence"])):
        look = _look(index, key[2])
        on_front = group["on_front"].astype(bool)
        for some, size, alpha in ((group[~on_front], 14, 0.5), (group[on_front], 46, 1)):
            axes.scatter(some["tpot_ms"], some["usd_per_million_tokens"], s=size, alpha=alpha, zorder=3, **look)
        for _, front in group[on_front].groupby("temperature", dropna=False):
            axes.plot(front["tpot_ms"], front["usd_per_million_tokens"], color=look["edgecolor"], linewidth=1)
        axes.scatter([], [], label=f"{key[0]}, {key[1]} ({key[2]})", **look)
    axes.set(xscale="log", yscale="log")
    for scale in (axes.xaxis, axes.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter(NullFormatter())
    axes.set(xlabel="time per output token (ms)", ylabel="US dollars per million tokens")
    legend(figure)
    return figure


@in_house_style
def break_even_figure(lines: pd.DataFrame, ratios: pd.DataFrame) -> Figure:
    """The price ratio at which two GPUs cost the same per token, by acceptance, with what vendors ask.

    Args:
        lines: from `gpus.break_even_prices`.
        ratios: from `comparison.price_ratios`.
    """
    if lines.empty:
        return empty_figure("When the dearer GPU is cheaper per token")
    first = lines.iloc[0]
    title = f"When {first['dearer']} is cheaper per token than {first['cheaper']}"
    figure, (axes,) = new_figure(titled(title, lines), 1)
    curve = lines[lines["acceptance_rate"].notna()]
    x = curve["acceptance_rate"].astype(float)
    axes.fill_between(x, curve["price_ratio_low"], curve["price_ratio_high"], color=PALETTE[0], alpha=0.16, linewidth=0)
    axes.plot(x, curve["price_ratio"], color=PALETTE[0], label="break-even with speculation (predicted)")
    for plain in lines.loc[lines["acceptance_rate"].isna(), "price_ratio"]:
        axes.axhline(plain, color=MUTED, linestyle=":", label="break-even without speculation (predicted)")
    for index, line in enumerate(ratios.itertuples(), start=1):
        name = f"{line.vendor} {line.region}: {line.ratio:.2f} ({line.dates})"
        axes.axhline(line.ratio, color=PALETTE[index % len(PALETTE)], linewidth=1, linestyle="--", label=name)
    axes.set(xlabel="acceptance rate", ylabel="ratio of hourly prices")
    legend(figure)
    return figure


@in_house_style
def published_figure(table: pd.DataFrame) -> Figure:
    """Predicted over published, a row for each point, with the band of the assumptions."""
    if table.empty:
        return empty_figure("Predicted over published")
    figure, (axes,) = new_figure("Predicted over published", 1, height=0.5 + 0.19 * len(table))
    heights = np.arange(len(table))[::-1]
    colors = table["measure"].map(dict(zip(sorted(table["measure"].unique()), PALETTE, strict=False)))
    low, high = table["predicted_low"] / table["published"], table["predicted_high"] / table["published"]
    axes.hlines(heights, low, high, colors=colors, alpha=0.45, linewidth=2.5)
    axes.scatter(table["ratio"], heights, facecolor="white", edgecolor=colors, zorder=3)
    axes.axvline(1, color=DARK, linewidth=1.1)
    axes.axvspan(0.75, 1.25, color="#EFEFEF", zorder=0)
    axes.set_yticks(heights, table["point"], fontsize=7.5)
    axes.set_xlabel("predicted / published (grey: within 25 %)")
    axes.grid(visible=False, axis="y")
    return figure


def _look(index: int, evidence: str) -> dict[str, Any]:
    """Colour, marker and face of a series: measured points are filled."""
    color = PALETTE[index % len(PALETTE)]
    face = color if evidence == "measured" else "white"
    return {"edgecolor": color, "marker": MARKERS[index % len(MARKERS)], "facecolor": face}


def _series(line: pd.Series) -> str:
    prompt = "natural prompts" if pd.isna(line["prompt_tokens"]) else f"{line['prompt_tokens']:.0f} prompt tokens"
    return f"{label(line['method'])}, {prompt}, {temperature_name(line['temperature'])}"


def _draw_crossovers(axes: Axes, series: pd.DataFrame, index: int, count: int, name: str) -> None:
    """One series: bars for intervals or bands, points where the curve crosses 1, arrows where it does not."""
    look = _look(index, series["evidence"].iloc[0])
    x = series["num_draft_tokens"].astype(float) + 0.08 * (index - (count - 1) / 2)
    low, high = (series[f"crossover_batch_{end}"].astype(float) for end in ("low", "high"))
    axes.vlines(x, low, high, color=look["edgecolor"], alpha=0.45, linewidth=2)
    axes.scatter(x, series["crossover_batch"].astype(float), zorder=3, label=name, **look)
    for outcome, (arrow, column) in ARROWS.items():
        here = series["outcome"] == outcome
        axes.scatter(x[here], series.loc[here, column].astype(float), marker=arrow, color=look["edgecolor"], s=60)
