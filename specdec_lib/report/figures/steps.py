"""Figures of the pieces of a step: from the formula to the measured speedup, and what verification costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from specdec_lib.analysis.waterfall import STAGES
from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import (
    MARKERS,
    PALETTE,
    color_of,
    empty_figure,
    in_house_style,
    legend,
    new_figure,
    titled,
)


@in_house_style
def waterfall_figure(stages: pd.DataFrame) -> Figure:
    """From the i.i.d. formula down to the measured speedup, a panel for each line; what a cost takes away is grey.

    Args:
        stages: from `waterfall.waterfall`, a few lines.
    """
    title = "From formula (predicted) to speedup (measured)"
    if stages.empty:
        return empty_figure(title)
    figure, panels = new_figure(title, len(stages), columns=2, height=2.3, sharex=True)
    names = list(STAGES.values())
    for axes, (_, line) in zip(panels, stages.iterrows(), strict=True):
        values = np.array([line[name] for name in STAGES], dtype=float)
        before = np.fmax(values, np.concatenate([values[:1], values[:-1]]))  # what the stage before had expected
        axes.barh(names, before, color="#D0D0D0", height=0.62)
        bars = axes.barh(names, values, color=color_of(line["method"]), height=0.62)
        axes.bar_label(bars, ["–" if np.isnan(value) else f"{value:.2f}" for value in values], padding=3)
        axes.yaxis.set_inverted(True)
        axes.axvline(1, color="#222222", linewidth=1.1)
        setting = f"γ = {line['num_draft_tokens']}, {temperature_name(line['temperature'])}, batch {line['batch_size']}"
        axes.set_title(f"{label(line['method'])}, {setting}", fontsize=9.5)
        axes.set_xlabel("speedup over autoregressive (×)")
        axes.margins(x=0.15)
    return figure


@in_house_style
def verification_figure(lines: pd.DataFrame) -> Figure:
    """v(m) and c, a curve for each batch size and context; from `step_table.verification_costs`."""
    title = "Cost of verification and of drafting"
    if lines.empty:
        return empty_figure(title)
    figure, (verifying, drafting) = new_figure(titled(title, lines), 2, sharey=False)
    for index, ((batch, context), curve) in enumerate(lines.groupby(["batch_size", "context_tokens"])):
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        name = f"batch {batch}, {context} tokens of context"
        for axes, column in ((verifying, "verification_cost"), (drafting, "cost_ratio")):
            axes.plot(curve["num_tokens"], curve[column], color=color, marker=marker, markersize=4, label=name)
    verifying.set(xlabel="tokens m of a pass", ylabel="v(m), in passes over one token")
    drafting.set(xlabel="drafted tokens γ", ylabel="c, in passes over one token")
    for axes in (verifying, drafting):
        axes.set_ylim(bottom=0)
    legend(figure)
    return figure
