"""Our engine next to others, as a figure."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec_lib.peers.lines import way_name
from specdec_lib.peers.rows import OURS
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import MUTED, PALETTE, faceted, in_house_style


@in_house_style
def peers_figure(lines: pd.DataFrame) -> Figure:
    """Time per token of every way, one panel for each temperature, the fastest on top; ours in blue."""

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        panel = panel.sort_values("tpot_ms", ascending=False)
        names = [way_name(n.engine, n.method, n.draft_id, n.num_draft_tokens) for n in panel.itertuples()]
        colors = [PALETTE[0] if engine == OURS else MUTED for engine in panel["engine"]]
        bars = axes.barh(range(len(panel)), panel["tpot_ms"], color=colors, height=0.6)
        axes.bar_label(bars, fmt="%.1f", padding=4, fontsize=8)
        axes.set_yticks(range(len(panel)), names, fontsize=8)
        axes.set_xlabel("time per output token (ms)")
        axes.margins(x=0.1)

    title, height = "Time per token next to other engines", 0.6 + 0.18 * len(lines)
    return faceted(
        lines, "temperature", title, draw, named=temperature_name, columns=1, height=height, sharex=True, sharey=False
    )
