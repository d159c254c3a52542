"""How fast the machine was over the run, by its baseline."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.report.figures.style import MARKERS, PALETTE, faceted, in_house_style, look_of
from specdec_lib.study.rows.drift import LIMIT


@in_house_style
def drift_figure(calls: pd.DataFrame) -> Figure:
    """Time per token of every call of the baseline over the run, a marker for each batch size.

    A line joins the repetitions of a block. Blocks that are excluded for drift are shaded.

    Args:
        calls: from `drift.baseline_calls`.
    """
    timed = calls["minutes"].notna().all()
    place = "minutes" if timed else "call"
    batches = sorted(calls["batch_size"].unique())

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        look = look_of(AUTOREGRESSIVE)
        margin = 0.005 * panel[place].max() if timed else 0.5
        for _, block in panel.groupby("block"):
            axes.plot(block[place], block["tpot_ms"], color=look["color"], linewidth=0.8, alpha=0.5, zorder=1)
            if block["drifted"].any():
                ends = block[place].min() - margin, block[place].max() + margin
                name = f"excluded: changed by over {LIMIT:.0%}"
                axes.axvspan(*ends, color=PALETTE[1], alpha=0.25, linewidth=0, label=name)
        for batch, points in panel.groupby("batch_size"):
            shape = {"marker": MARKERS[batches.index(batch) % len(MARKERS)], "color": look["color"]}
            axes.scatter(points[place], points["tpot_ms"], 16, label=f"batch size {batch}", **shape)
        axes.set_ylim(0, 1.1 * calls["tpot_ms"].max())
        axes.set_xlabel("minutes since the first call" if timed else "call of the baseline, in the order of the table")
        axes.set_ylabel("time per output token (ms)")
        axes.grid(visible=False, axis="x")

    title = "The baseline over the run"
    return faceted(calls, "device_name", title, draw, columns=1, width=8.8, height=2.6)
