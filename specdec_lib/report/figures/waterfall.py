"""The waterfall as a figure, a table and a sentence."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.analysis.waterfall import STAGES
from specdec_lib.report.figures.style import METHOD_COLORS, METHOD_NAMES, MUTED, in_house_style, temperature_name

COLUMNS = 2


@in_house_style
def waterfall_figure(stages: pd.DataFrame) -> Figure:
    """From the i.i.d. formula down to the measured speedup, a panel for each line; what each cost takes away is grey.

    Args:
        stages: from `waterfall.waterfall`, a few lines.

    Raises:
        ValueError: there is no line.
    """
    if stages.empty:
        raise ValueError("nothing was measured for the waterfall: look at the failed cells")
    title = "From formula (predicted) to speedup (measured)"
    figure, panels = panel_grid(title, len(stages), min(COLUMNS, len(stages)))
    heights = np.arange(len(STAGES))[::-1]
    for axes, (_, line) in zip(panels, stages.iterrows(), strict=True):
        values = np.array([line[name] for name in STAGES], dtype=float)
        color = METHOD_COLORS[line["method"]]
        lost = np.concatenate([[0], values[:-1] - values[1:]])
        axes.barh(heights, values, color=[color] * (len(STAGES) - 1) + ["#222222"], height=0.62, alpha=0.85)
        axes.barh(heights, lost.clip(min=0), left=values, color="#D0D0D0", height=0.62)
        axes.axvline(1, color=METHOD_COLORS["autoregressive"], linewidth=1.1)
        for height, value, gap in zip(heights, values, lost, strict=True):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            right = max(np.nan_to_num(value) + max(np.nan_to_num(gap), 0), 0)
            axes.annotate(text, (right, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(heights, list(STAGES.values()))
        axes.set_title(f"{METHOD_NAMES[line['method']]}, {_setting(line)}", fontsize=9.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, float(np.nanmax(stages[list(STAGES)].to_numpy(dtype=float))) * 1.15)
    panels[-1].set_xlabel("speedup over autoregressive (×)", color=MUTED)
    return figure


def panel_grid(title: str, count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with its title at the left and `count` panels in rows of `columns`, all of one scale."""
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(6.2 if columns == 1 else 4.6 * columns, 0.9 + 2.3 * rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color="#111111")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel())
    for axes in panels[count:]:
        figure.delaxes(axes)
    return figure, panels[:count]


def waterfall_table(stages: pd.DataFrame) -> pd.DataFrame:
    """Every line with its speedup after every stage; all but the last stage are predicted."""
    table = pd.DataFrame(
        {
            "method": stages["method"].map(METHOD_NAMES),
            "γ": stages["num_draft_tokens"].astype(int),
            "T": [f"{temperature:g}" for temperature in stages["temperature"]],
            "batch": stages["batch_size"].astype(int),
            "prompt": ["natural" if pd.isna(tokens) else f"{tokens}" for tokens in stages["prompt_tokens"]],
            "output": stages["max_new_tokens"].astype(int),
        }
    )
    for name, heading in STAGES.items():
        table[heading] = [_text(value, "{:.2f}") for value in stages[name]]
    table["unexplained"] = [_text(value, "{:+.0%}") for value in stages["unexplained"]]
    table["evidence"] = "predicted, last stage measured"
    return table.reset_index(drop=True)


def finding_waterfall(stages: pd.DataFrame) -> str:
    """How much of the measured speedups the measured costs leave unexplained, and which cost takes most."""
    known = stages[stages["unexplained"].notna()]
    if known.empty:
        notes = stages["note"].dropna()
        return "The costs of the pieces of a step were not measured here." if notes.empty else notes.iloc[0]
    size = known["unexplained"].abs()
    names = list(STAGES)[2:-1]
    losses = {STAGES[b]: (1 - known[b] / known[a]).mean() for a, b in itertools.pairwise(names)}
    costliest = max(losses, key=lambda name: losses[name])
    worst = known.loc[size.idxmax()]
    return (
        f"Measured costs leave {size.median():.0%} of the speedup unexplained at the median line and {size.max():.0%} "
        f"at the worst ({METHOD_NAMES[worst['method']]}, {_setting(worst)}). "
        f"The {costliest} takes most: {losses[costliest]:.0%} on average."
    )


def _setting(line: pd.Series) -> str:
    gamma, temperature = int(line["num_draft_tokens"]), temperature_name(line["temperature"])
    return f"γ = {gamma}, {temperature}, batch {int(line['batch_size'])}"


def _text(value: float, form: str) -> str:
    return "–" if pd.isna(value) else form.format(value)
