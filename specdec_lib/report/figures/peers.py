"""Our engine next to others, as a figure."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from specdec_lib.peers.lines import way_name
from specdec_lib.peers.ways import OURS
from specdec_lib.report.captions.phrases import temperature_name
from specdec_lib.report.figures.style import MUTED, PALETTE, empty_figure, in_house_style, new_figure


@in_house_style
def peers_figure(lines: pd.DataFrame) -> Figure:
    """Time per token of every way, one panel for each temperature, the fastest on top; ours in blue."""
    title, groups = "Time per token next to other engines", list(lines.groupby("temperature"))
    if not groups:
        return empty_figure(title)
    most = max(len(group) for _, group in groups)
    figure, panels = new_figure(title, len(groups), columns=1, height=0.6 + 0.24 * most, sharex=True, sharey=False)
    for axes, (temperature, group) in zip(panels, groups, strict=True):
        group = group.sort_values("tpot_ms", ascending=False)
        names = [way_name(n.engine, n.method, n.draft_id, n.num_draft_tokens) for n in group.itertuples()]
        colors = [PALETTE[0] if engine == OURS else MUTED for engine in group["engine"]]
        bars = axes.barh(range(len(group)), group["tpot_ms"], color=colors, height=0.6)
        axes.bar_label(bars, fmt="%.1f", padding=4, fontsize=8)
        axes.set_yticks(range(len(group)), names, fontsize=8)
        axes.set_title(temperature_name(temperature))
        axes.set_xlabel("time per output token (ms)")
        axes.margins(x=0.1)
    return figure
