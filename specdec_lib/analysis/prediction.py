"""What the formula of Leviathan et al. 2022 says the speedup should be, from measured acceptance and costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from specdec_lib.analysis.metrics import has_fixed_length
from specdec_lib.analysis.step_table import StepTable, costs_of
from specdec_lib.analysis.theory import walltime_improvement
from specdec_lib.methods import AUTOREGRESSIVE, METHODS
from specdec_lib.study.cells import NATURAL_PROMPT

TWO_CHAINS = [name for name, method in METHODS.items() if method.chains > 1]
COLUMNS = ["method", "temperature", "num_draft_tokens", "acceptance_rate", "cost_ratio", "verification_cost", "speedup"]


def predicted_speedups(lines: pd.DataFrame, costs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The i.i.d. prediction for each method, temperature and gamma; `evidence` is predicted.

    Theorem 3.8 with the acceptance rate pooled over all gammas, and with the costs c of drafting a token and
    v(gamma + 1) of verification, both over an ordinary pass: E[tokens] / (v + gamma c). No time of the sweep enters it.
    NaN where a cost was not measured. The theorem is of one chain, so that methods of two have no line.

    Args:
        lines: from `headline.along(lines, params, "num_draft_tokens")`.
        costs: the step costs of the same run; not used if `step_table.why_unused` says so.
        rows: the results table that the lines come from.
    """
    methods = lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna() & (lines["tested_tokens"] > 0)]
    methods = methods[has_fixed_length(methods) & ~methods["method"].isin(TWO_CHAINS)]
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
    gamma, temperature = int(line["num_draft_tokens"]), line["temperature"]
    place = int(line["batch_size"]), prompt + line["max_new_tokens"] / 2
    one, many = (table.ms("target", *place, tokens, temperature) for tokens in (1, gamma + 1))
    return table.drafting_ms(line["method"], *place, gamma, temperature) / gamma / one, many / one
