"""What verification and drafting cost, as shares of an ordinary step: v(m) and c, by batch size and context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from specdec_lib.analysis.step_table import StepTable, costs_of
from specdec_lib.report.figures.comparison import MARKERS, PALETTE
from specdec_lib.report.figures.style import in_house_style, new_figure


def verification_costs(costs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each batch size, context and number of tokens m that a pass of the target was timed with.

    `verification_cost` is v(m), the pass over m tokens of each row over the pass over one; `cost_ratio` is c, the
    time of drafting m tokens divided by m over the same; NaN where no draft of m tokens was timed. Medians over
    temperatures.

    Args:
        costs: the step costs of a run; not used if they were timed in another way than the rows' steps ran.
        rows: the results table of the run.
    """
    costs = costs_of(rows, costs)
    table = StepTable(
        costs.groupby(["model", "batch_size", "context_tokens", "num_tokens"])["ms"].median().reset_index()
    )
    timed = table.costs[table.costs["model"] == "target"]
    lines = [
        {
            "batch_size": batch, "context_tokens": context, "num_tokens": tokens,
            "pass_ms": table.ms("target", batch, context, tokens),
            "verification_cost": table.verification_cost(batch, context, tokens),
            "cost_ratio": table.cost_ratio(batch, context, tokens),
        }
        for batch, context, tokens in timed[["batch_size", "context_tokens", "num_tokens"]].itertuples(index=False)
    ]  # fmt: skip
    columns = ["batch_size", "context_tokens", "num_tokens", "pass_ms", "verification_cost", "cost_ratio"]
    return pd.DataFrame(lines, columns=columns).assign(evidence="measured")


@in_house_style
def verification_figure(lines: pd.DataFrame) -> Figure:
    """v(m) and c, a curve for each batch size and context.

    Args:
        lines: from `verification_costs`.

    Raises:
        ValueError: there is no line.
    """
    if lines.empty:
        raise ValueError("the costs of a step were not measured: look at what the sweep printed")
    figure, (verifying, drafting) = new_figure("Cost of verification and of drafting (measured)", 2, sharey=False)
    for index, ((batch, context), curve) in enumerate(lines.groupby(["batch_size", "context_tokens"])):
        look: dict[str, Any] = {
            "color": PALETTE[index % len(PALETTE)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4,
        }
        label = f"batch {batch}, {context} tokens of context"
        verifying.plot(curve["num_tokens"], curve["verification_cost"], label=label, **look)
        drafting.plot(curve["num_tokens"], curve["cost_ratio"], **look)
    verifying.set_xlabel("tokens m of a pass")
    verifying.set_ylabel("v(m), in passes over one token")
    drafting.set_xlabel("drafted tokens γ")
    drafting.set_ylabel("c, in passes over one token")
    for axes in (verifying, drafting):
        axes.set_ylim(bottom=0)
    names = verifying.get_legend_handles_labels()
    figure.legend(*names, loc="outside lower left", fontsize=8, frameon=False, ncols=2)
    return figure


def finding_verification(lines: pd.DataFrame) -> str:
    """v at the most tokens and the range of c, by batch size and context."""
    if lines.empty:
        return "The costs of the pieces of a step were not measured here."
    parts = []
    for (batch, context), curve in lines.groupby(["batch_size", "context_tokens"]):
        last = curve.loc[curve["num_tokens"].idxmax()]
        ratios = curve["cost_ratio"].dropna()
        drafted = f", c = {ratios.min():.2f} to {ratios.max():.2f}" if len(ratios) else ""
        v = f"v({int(last['num_tokens'])}) = {last['verification_cost']:.2f}"
        parts.append(f"batch {batch} behind {context} tokens, {v}{drafted}")
    return f"Measured: {'; '.join(parts)}."


def verification_table(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines for readers."""
    return pd.DataFrame(
        {
            "batch": lines["batch_size"],
            "context": lines["context_tokens"],
            "tokens m": lines["num_tokens"],
            "pass (ms)": lines["pass_ms"].map("{:.2f}".format),
            "v(m)": lines["verification_cost"].map("{:.2f}".format),
            "c, γ = m": lines["cost_ratio"].map(lambda ratio: "–" if np.isnan(ratio) else f"{ratio:.3f}"),
            "evidence": lines["evidence"],
        }
    )
