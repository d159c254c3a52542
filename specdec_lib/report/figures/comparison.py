"""Figures and sentences of the comparison. Measured points are filled, predicted ones hollow with their band."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from specdec_lib.analysis.comparison import price_break_even
from specdec_lib.report.figures.style import METHOD_NAMES, MUTED, in_house_style, new_figure
from specdec_lib.report.figures.waterfall import panel_grid

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito 2008
MARKERS = ("o", "^", "s", "D", "v", "P")
NONE = "Nothing to compare here: run a study first, with make run GPU=<name>."


@in_house_style
def crossover_figure(crossovers: pd.DataFrame) -> Figure:
    """B*, the batch size where the speedup falls to 1, by gamma: a panel for each study, a series for each setting.

    Where the curve does not cross 1 within the batch sizes tried, an arrow stands at the last of them.
    """
    studies = list(crossovers.groupby("gpu"))
    columns = min(2, max(len(studies), 1))
    figure, panels = panel_grid(
        _titled("Batch size B* where speculation stops paying", crossovers), len(studies), columns
    )
    settings = ["method", "prompt_tokens", "temperature"]
    known = crossovers[settings].drop_duplicates().sort_values(settings).reset_index(drop=True)
    looks = {_series(line): index for index, line in known.iterrows()}
    for axes, (gpu, study) in zip(panels, studies, strict=True):
        for _, group in study.groupby(settings, dropna=False):
            name = _series(group.iloc[0])
            _draw_crossovers(axes, group, looks[name], len(looks), name)
        axes.set_title(f"{gpu} ({study['evidence'].iloc[0]})")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("batch size B*")
    for axes in panels[-columns:]:
        axes.set_xlabel("number of draft tokens γ")
    _legend(figure)
    return figure


@in_house_style
def pareto_figure(lines: pd.DataFrame) -> Figure:
    """Time per token against dollars per million tokens with the settings that no other beats in both, and beside it
    the ratio of hourly prices at which speculation breaks even.

    Args:
        lines: from `comparison.pareto`.
    """
    figure, (axes, ratios) = new_figure(_titled("Latency against cost", lines), 2, sharey=False, height=4.2)
    looks = {key: index for index, (key, _) in enumerate(lines.groupby(["gpu", "pair", "evidence"]))}
    for key, group in lines.groupby(["gpu", "pair", "evidence"]):
        color, marker, face = _look(looks[key], key[2])
        for front, size in ((False, 14), (True, 46)):
            some = group[group["on_front"] == front]
            x, y = some["tpot_ms"], some["usd_per_million_tokens"]
            alpha = 1 if front else 0.5
            axes.scatter(x, y, s=size, marker=marker, facecolor=face, edgecolor=color, alpha=alpha, zorder=3)
        for _, front_line in group[group["on_front"]].sort_values("tpot_ms").groupby("temperature", dropna=False):
            axes.plot(front_line["tpot_ms"], front_line["usd_per_million_tokens"], color=color, linewidth=1)
        axes.plot([], [], color=color, marker=marker, markerfacecolor=face, label=f"{key[0]}, {key[1]} ({key[2]})")
    for key, group in price_break_even(lines).groupby(["gpu", "pair", "evidence"]):
        color, marker, face = _look(looks[key], key[2])
        ratios.plot(group["batch_size"], group["price_ratio"], color=color, marker=marker, markerfacecolor=face)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time per output token (ms)")
    axes.set_ylabel("US dollars per million tokens")
    ratios.axhline(1, color=MUTED, linewidth=1.1)
    ratios.set_xscale("log", base=2)
    ratios.xaxis.set_major_formatter("{x:g}")
    ratios.set_xlabel("batch size")
    ratios.set_ylabel("break-even price ratio, best γ")
    ratios.set_title("speculation saves money below its line", fontsize=9.5, color=MUTED)
    _legend(figure)
    return figure


@in_house_style
def break_even_figure(lines: pd.DataFrame, ratios: pd.DataFrame) -> Figure:
    """The price ratio at which two GPUs cost the same per token, by acceptance, with what vendors ask.

    Args:
        lines: from `gpu_predictions.break_even_prices`.
        ratios: from `comparison.price_ratios`.
    """
    dearer, cheaper = lines["dearer"].iloc[0], lines["cheaper"].iloc[0]
    figure, (axes,) = new_figure(_titled(f"When {dearer} is cheaper per token than {cheaper}", lines), 1)
    curve = lines[lines["acceptance_rate"].notna()]
    x = curve["acceptance_rate"].astype(float)
    axes.fill_between(x, curve["price_ratio_low"], curve["price_ratio_high"], color=PALETTE[0], alpha=0.16, linewidth=0)
    axes.plot(x, curve["price_ratio"], color=PALETTE[0], label="break-even with speculation (predicted)")
    plain = lines.loc[lines["acceptance_rate"].isna(), "price_ratio"].iloc[0]
    axes.axhline(plain, color=MUTED, linestyle=":", label="break-even without speculation (predicted)")
    for index, line in enumerate(ratios.itertuples(), start=1):
        label = f"{line.vendor} {line.region}: {line.ratio:.2f} ({line.dates})"
        axes.axhline(line.ratio, color=PALETTE[index % len(PALETTE)], linewidth=1, linestyle="--", label=label)
    axes.set_xlabel("acceptance rate")
    axes.set_ylabel("ratio of hourly prices")
    _legend(figure)
    return figure


@in_house_style
def honesty_figure(table: pd.DataFrame) -> Figure:
    """Predicted over published, a row for each point, with the band of the assumptions."""
    figure, (axes,) = new_figure("Predicted over published", 1, height=0.9 + 0.19 * len(table))
    heights = np.arange(len(table))[::-1]
    colors = table["measure"].map(dict(zip(sorted(table["measure"].unique()), PALETTE, strict=False)))
    low, high = table["predicted_low"] / table["published"], table["predicted_high"] / table["published"]
    axes.hlines(heights, low, high, colors=colors, alpha=0.45, linewidth=2.5)
    axes.scatter(table["ratio"], heights, facecolor="white", edgecolor=colors, zorder=3)
    axes.axvline(1, color="#222222", linewidth=1.1)
    axes.axvspan(0.75, 1.25, color="#EFEFEF", zorder=0)
    axes.set_yticks(heights, table["point"], fontsize=7.5)
    axes.set_xlabel("predicted / published (grey: within 25 %)")
    axes.grid(visible=False, axis="y")
    return figure


def finding_side_by_side(table: pd.DataFrame) -> str:
    """Which settings were measured and which predicted, and the least time per token of each machine."""
    if table.empty:
        return NONE
    parts = []
    for (gpu, evidence), group in table[table["tpot_ms"].notna()].groupby(["gpu", "evidence"]):
        best = group.loc[group["tpot_ms"].idxmin()]
        parts.append(
            f"{gpu} ({best['pair']}), {best['tpot_ms']:.3g} ms with {METHOD_NAMES[best['method']]} ({evidence})"
        )
    pairs = table["pair"].nunique()
    caution = " Different pairs are different work: compare machines within one pair only." if pairs > 1 else ""
    return f"Least time per token at the headline setting: {'; '.join(parts)}.{caution}"


def finding_crossover(crossovers: pd.DataFrame) -> str:
    """How many settings stop paying within the batches tried."""
    if crossovers.empty:
        return "No setting was measured at two batch sizes, so no crossover can be read."
    parts = []
    for evidence, group in crossovers.groupby("evidence"):
        inside = group["crossover_batch"].notna().sum()
        never = group["reading"].str.startswith("pays at no").sum()
        always = group["reading"].str.startswith("pays up to").sum()
        later = group["reading"].str.startswith("pays at some").sum()
        parts.append(
            f"{evidence}: {inside} of {len(group)} settings stop paying within the batch sizes tried, "
            f"{never} pay nowhere, {always} up to the largest" + f", {later} at some larger one only" * bool(later)
        )
    return f"{'; '.join(parts)}.".capitalize()


def finding_pareto(lines: pd.DataFrame) -> str:
    """How many settings are on the front, and how many of them speculate."""
    front = lines[lines["on_front"]]
    if front.empty:
        return NONE
    speculative = (front["method"] != "autoregressive").sum()
    return f"{len(front)} of {len(lines)} settings are beaten by no other in both; {speculative} of these speculate."


def finding_break_even(lines: pd.DataFrame, ratios: pd.DataFrame) -> str:
    """At which vendors the dearer GPU is predicted to be the cheaper per token."""
    curve = lines[lines["acceptance_rate"].notna()]
    low, high = curve["price_ratio"].min(), curve["price_ratio"].max()
    asked = [
        (ratios["ratio"] < low, "the cheaper per token at {}"),
        (ratios["ratio"].between(low, high), "the cheaper at some acceptance at {}"),
        (ratios["ratio"] > high, "the dearer at {}"),
    ]
    where = ", ".join(text.format(" and ".join(ratios[here]["vendor"].unique())) for here, text in asked if here.any())
    dearer, cheaper = lines["dearer"].iloc[0], lines["cheaper"].iloc[0]
    return (
        f"Predicted: {dearer} breaks even with {cheaper} at {low:.2f} to {high:.2f} times the hourly price at batch "
        f"{lines['batch_size'].iloc[0]}; vendors ask {ratios['ratio'].min():.2f} to {ratios['ratio'].max():.2f} times, "
        f"so that it is {where}."
    )


def _look(index: int, evidence: str) -> tuple[str, str, str]:
    """Colour, marker and face of a series: measured points are filled."""
    color = PALETTE[index % len(PALETTE)]
    return color, MARKERS[index % len(MARKERS)], color if evidence == "measured" else "white"


def _series(line: pd.Series) -> str:
    prompt = "natural prompts" if pd.isna(line["prompt_tokens"]) else f"{line['prompt_tokens']:.0f} prompt tokens"
    temperature = "" if pd.isna(line["temperature"]) else f", T = {line['temperature']:g}"
    return f"{METHOD_NAMES[line['method']]}, {prompt}{temperature}"


def _draw_crossovers(axes: Axes, group: pd.DataFrame, index: int, count: int, name: str) -> None:
    """One series: bars for intervals or bands, points where the curve crosses 1, arrows where it does not."""
    color, marker, face = _look(index, group["evidence"].iloc[0])
    x = group["num_draft_tokens"].to_numpy(float) + 0.08 * (index - (count - 1) / 2)
    axes.vlines(x, group["crossover_low"], group["crossover_high"], color=color, alpha=0.45, linewidth=2)
    inside = group["crossover_batch"].notna().to_numpy()
    axes.scatter(
        x[inside],
        group["crossover_batch"].astype(float)[inside],
        marker=marker,
        facecolor=face,
        edgecolor=color,
        zorder=3,
    )
    nowhere, later = (group["reading"].str.startswith(f"pays at {what}").to_numpy() for what in ("no ", "some "))
    for arrow, where, column in (
        ("$\\downarrow$", nowhere, "smallest_batch"),
        ("$\\updownarrow$", later, "largest_batch"),
        ("$\\uparrow$", ~nowhere & ~later & ~inside, "largest_batch"),
    ):
        axes.scatter(x[where], group[column].to_numpy(float)[where], marker=arrow, color=color, zorder=3, s=60)
    axes.plot([], [], color=color, marker=marker, markerfacecolor=face, label=name)


def _titled(title: str, table: pd.DataFrame) -> str:
    return f"{title} ({', '.join(sorted(table['evidence'].unique()))})"


def _legend(figure: Figure) -> None:
    """Names below the axes, each once: too many, and too long, for the ends of curves."""
    names: dict[str, Artist] = {}
    for axes in figure.axes:
        names |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = 1 if len(names) < 5 else 2
    figure.legend(list(names.values()), list(names), loc="outside lower left", fontsize=8, frameon=False, ncols=columns)
