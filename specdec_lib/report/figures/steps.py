"""From the formula to the measured speedup, as a figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.analysis.waterfall import STAGES
from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import DARK, faceted, in_house_style, look_of


@in_house_style
def waterfall_figure(stages: pd.DataFrame) -> Figure:
    """From the i.i.d. formula down to the measured speedup, a panel for each line; what a cost takes away is grey.

    Args:
        stages: from `waterfall.waterfall`, a few lines.
    """

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        line, names = panel.iloc[0], list(STAGES.values())
        values = np.array([line[name] for name in STAGES], dtype=float)
        before = np.fmax(values, np.concatenate([values[:1], values[:-1]]))  # what the stage before had expected
        axes.barh(names, before, color="#D0D0D0", height=0.62)
        bars = axes.barh(names, values, color=look_of(line["method"])["color"], height=0.62)
        axes.bar_label(bars, ["–" if np.isnan(value) else f"{value:.2f}" for value in values], padding=3)
        axes.yaxis.set_inverted(True)
        axes.axvline(1, color=DARK, linewidth=1.1)
        setting = f"γ = {line['num_draft_tokens']}, {temperature_name(line['temperature'])}, batch {line['batch_size']}"
        axes.set_title(f"{label(line['method'])}, {setting}", fontsize=9.5)
        axes.set_xlabel("speedup over autoregressive (×)")
        axes.margins(x=0.15)

    title = "From formula (predicted) to speedup (measured)"
    each = stages.drop(columns="evidence").assign(panel=range(len(stages)))
    return faceted(each, "panel", title, draw, columns=2, height=2.3, sharex=True)
