"""Our engine beside others, as a figure."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from specdec_lib.peers.lines import way_name
from specdec_lib.peers.ways import OURS
from specdec_lib.report.figures.style import MUTED, in_house_style, temperature_name

OUR_COLOR = "#0072B2"  # Okabe and Ito 2008


@in_house_style
def peers_figure(lines: pd.DataFrame) -> Figure:
    """Time per token of every way, one panel for each temperature, the fastest on top; ours in blue squares."""
    panels = [(t, here.sort_values("tpot_ms", ascending=False)) for t, here in lines.groupby("temperature")]
    height = 1.0 + 0.24 * sum(len(here) + 2 for _, here in panels)
    sizes = [len(here) for _, here in panels]
    figure = Figure(figsize=(7.5, height), layout="constrained")
    figure.suptitle("Time per token beside other engines", x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=sizes)
    for panel, (temperature, here) in zip(axes[:, 0], panels, strict=True):
        for place, line in enumerate(here.itertuples()):
            ours = line.engine == OURS
            color, marker = (OUR_COLOR, "s") if ours else (MUTED, "o")
            panel.plot(line.tpot_ms, place, marker=marker, color=color)
            panel.annotate(
                f"{line.tpot_ms:.1f}", (line.tpot_ms, place), (6, -3), textcoords="offset points", fontsize=8
            )
        names = [way_name(n.engine, n.method, n.draft_id, n.num_draft_tokens) for n in here.itertuples()]
        panel.set_yticks(range(len(here)), names, fontsize=8)
        panel.set_title(temperature_name(temperature))
    axes[-1, 0].set_xlim(0, 1.12 * lines["tpot_ms"].max())  # the panels share it
    axes[-1, 0].set_xlabel("time per output token (ms)")
    return figure
