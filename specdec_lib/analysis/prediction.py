"""What the formula of Leviathan et al. 2022 says the speedup should be."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.metrics import BASELINE
from specdec_lib.analysis.theory import walltime_improvement


def predicted_speedups(lines: pd.DataFrame) -> pd.DataFrame:
    """The i.i.d. prediction (Theorem 3.8) for each method, temperature and gamma; `evidence` is predicted.

    The acceptance rate is pooled over all gammas. The cost ratio comes from the smallest gamma alone: its time per step
    over an ordinary step, less one, shared among its draft tokens; so it holds what verification costs as well.

    Args:
        lines: from `metrics.along(lines, params, "num_draft_tokens")`.
    """
    methods = lines[(lines["method"] != BASELINE) & lines["speedup"].notna() & (lines["tested_tokens"] > 0)]
    frames = []
    for _, curve in methods.groupby(["method", "temperature"]):
        curve = curve.sort_values("num_draft_tokens")
        rate = float(curve["accepted_tokens"].sum() / curve["tested_tokens"].sum())
        first = curve.iloc[0]
        step = first["mean_acceptance_length"] / first["speedup"]  # a speculative step over an ordinary one
        ratio = max(0.0, float(step - 1) / int(first["num_draft_tokens"]))
        speedup = [walltime_improvement(rate, int(gamma), ratio) for gamma in curve["num_draft_tokens"]]
        columns = ["method", "temperature", "num_draft_tokens"]
        frames.append(curve[columns].assign(acceptance_rate=rate, cost_ratio=ratio, speedup=speedup))
    columns = ["method", "temperature", "num_draft_tokens", "acceptance_rate", "cost_ratio", "speedup"]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    return table.assign(evidence="predicted")
