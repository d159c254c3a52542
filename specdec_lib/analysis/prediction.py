"""What the formula of Leviathan et al. 2022 says the speedup should be, from measured acceptance and costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from specdec_lib.analysis.metrics import BASELINE
from specdec_lib.analysis.step_table import StepTable, costs_of
from specdec_lib.analysis.theory import walltime_improvement
from specdec_lib.analysis.waterfall import PIECES
from specdec_lib.study.cells import NATURAL_PROMPT

COLUMNS = ["method", "temperature", "num_draft_tokens", "acceptance_rate", "cost_ratio", "verification_cost", "speedup"]


def predicted_speedups(lines: pd.DataFrame, costs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The i.i.d. prediction for each method, temperature and gamma; `evidence` is predicted.

    Theorem 3.8 with the acceptance rate pooled over all gammas, and with the costs c of drafting a token and
    v(gamma + 1) of verification, measured over an ordinary pass: E[tokens] / (v + gamma c). No time of the sweep enters
    it. NaN where a cost was not measured.

    Args:
        lines: from `metrics.along(lines, params, "num_draft_tokens")`.
        costs: the step costs of the same run; not used if they were timed in another way than the rows' steps ran.
        rows: the results table behind the lines.
    """
    methods = lines[(lines["method"] != BASELINE) & lines["speedup"].notna() & (lines["tested_tokens"] > 0)]
    table, found = StepTable(costs_of(rows, costs)), []
    for (method, temperature), curve in methods.groupby(["method", "temperature"]):
        rate = float(curve["accepted_tokens"].sum() / curve["tested_tokens"].sum())
        for _, line in curve.sort_values("num_draft_tokens").iterrows():
            gamma, (drafting, verifying) = int(line["num_draft_tokens"]), _ratios(line, table)
            known = np.isfinite(drafting + verifying)
            speedup = walltime_improvement(rate, gamma, drafting, verifying) if known else np.nan
            found.append((method, temperature, gamma, rate, drafting, verifying, speedup))
    return pd.DataFrame(found, columns=COLUMNS).assign(evidence="predicted")


def _ratios(line: pd.Series, table: StepTable) -> tuple[float, float]:
    """c and v(gamma + 1) of a line halfway through its output."""
    prompt = NATURAL_PROMPT if pd.isna(line["prompt_tokens"]) else int(line["prompt_tokens"])
    gamma, batch, context = int(line["num_draft_tokens"]), int(line["batch_size"]), prompt + line["max_new_tokens"] / 2
    one, many = (table.ms("target", batch, context, tokens, line["temperature"]) for tokens in (1, gamma + 1))
    drafting = sum(table.ms(piece, batch, context, gamma, line["temperature"]) for piece in PIECES[line["method"]])
    return drafting / gamma / one, many / one
