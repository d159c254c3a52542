"""What the targets for speculation ask of a draft: the acceptance that would meet them at the measured costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from specdec_lib.analysis.step_table import StepTable, read_step_costs
from specdec_lib.analysis.theory import expected_tokens
from specdec_lib.machine.step_costs import FILE as STEP_COSTS
from specdec_lib.peers.lines import BASELINE, BEST, OURS, TARGETS

MOST_DRAFTED = 15  # tokens, the most whose verification is timed


def limit_table(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """For each target the acceptance rate that it needs, for readers; empty if the run has no step costs.

    The ratio of times per token follows from Theorem 3.8 of Leviathan et al. 2022 with measured costs, at the best
    gamma for that acceptance: drafting, verification and all else of a step over a step of the baseline.
    """
    if not (folder / STEP_COSTS).exists():
        return pd.DataFrame()
    table = StepTable(read_step_costs(folder))
    context = float(rows["prompt_tokens"].mean() + rows["max_new_tokens"].mean() / 2)
    lines = []
    for target in TARGETS:
        if (target.ours, target.other) != (BEST, BASELINE):
            continue
        assert target.temperature is not None
        assert target.at_least is not None
        costs = step_ratios(table, context, target.temperature)
        if costs.empty:
            continue
        line = {"T": f"{target.temperature:g}"} | _drafted(rows, target.temperature, costs)
        for name, bound in (("at least", target.at_least), ("aim", target.aim)):
            line[f"acceptance for {name}"] = f"{bound:.2f}: {_in_words(needed(costs, bound))}"
        line["ratio if all were accepted"] = f"{reachable(costs, 1.0):.2f}"
        lines.append(line)
    return pd.DataFrame(lines)


def step_ratios(table: StepTable, context: float, temperature: float) -> pd.Series:
    """A speculative step over one of the baseline, at batch 1, by gamma; without those that were not timed."""

    def ms(model: str, tokens: int) -> float:
        return table.ms(model, 1, context, tokens, temperature)

    baseline = ms("target", 1) + ms("sampling", 1)
    gammas = range(1, MOST_DRAFTED + 1)
    steps = {g: ms("target", g + 1) + ms("sampling", g + 1) + ms("draft", g) for g in gammas}
    return (pd.Series(steps, dtype="float64") / baseline).dropna()


def reachable(ratios: pd.Series, acceptance_rate: float) -> float:
    """The ratio of times per token at the best gamma, or 1 without speculation."""
    return min(1.0, *(cost / expected_tokens(acceptance_rate, int(gamma)) for gamma, cost in ratios.items()))


def needed(ratios: pd.Series, bound: float) -> float:
    """The smallest acceptance rate, in hundredths, that reaches `bound`; NaN if none does."""
    rates = np.linspace(0, 1, 101)
    return next((float(rate) for rate in rates if reachable(ratios, rate) <= bound), float("nan"))


def _drafted(rows: pd.DataFrame, temperature: float, costs: pd.Series) -> dict[str, str]:
    """What our fastest way to draft with a model had accepted, and the ratio that follows."""
    ours = rows[(rows["engine"] == OURS) & (rows["status"] == "ok") & (rows["temperature"] == temperature)]
    drafted = ours[ours["method"] == "draft"].groupby(["draft_id", "num_draft_tokens"])
    ways = drafted[["tpot_ms", "acceptance_rate"]].mean()
    if ways.empty:
        return {"measured acceptance": "–", "ratio at that": "–"}
    rate = float(ways.loc[ways["tpot_ms"].idxmin(), "acceptance_rate"])
    return {"measured acceptance": f"{rate:.2f}", "ratio at that": f"{reachable(costs, rate):.2f}"}


def _in_words(rate: float) -> str:
    return "out of reach" if np.isnan(rate) else f"{rate:.2f}"
