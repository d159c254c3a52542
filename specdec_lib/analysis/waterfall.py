"""From the formula to the measured speedup, one cost at a time.

Every stage is a speedup that was expected before the cost that the next stage adds was known:

1. `iid`: tokens per pass if every draft token were accepted with the measured rate (Leviathan et al. 2022, eq. 1), with
   free drafts and passes that cost the same whatever their length.
2. `by_position`: the same from the measured rate at each position of the draft.
3. `as_emitted`: the tokens per pass that each prompt really had: lookup finds nothing in some steps, and the last ones
   of an output have no room for a draft.
4. `draft_cost`: drafting takes its measured time (Theorem 3.8 with the measured c, and tokens as emitted).
5. `verify_cost`: a pass over gamma + 1 tokens takes its measured time.
6. `host_cost`: sampling, verification and bookkeeping take theirs, in the baseline too.
7. `measured`. What is left between 6 and 7 is unexplained.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from specdec_lib.analysis import metrics
from specdec_lib.analysis.statistics import mean_over_prompts
from specdec_lib.analysis.step_table import StepTable, costs_of, why_unused
from specdec_lib.analysis.theory import expected_tokens, expected_tokens_by_position
from specdec_lib.methods import METHODS

STAGES = {
    "iid": "i.i.d. formula",
    "by_position": "acceptance by position",
    "as_emitted": "tokens as emitted",
    "draft_cost": "cost of drafting",
    "verify_cost": "cost of verification",
    "host_cost": "sampling and host",
    "measured": "measured",
}
COSTS = list(STAGES)[2:-1]  # the stages that are computed row by row


def waterfall(rows: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """One line per speculative setting of the library that drafts gamma tokens: its speedup after each stage.

    `unexplained` is measured / host_cost - 1; NaN where a cost was not measured. `note` says why measured costs are not
    used, if so.

    Args:
        rows: the results table.
        costs: the step costs of the same run.
    """
    lines = metrics.speedups(rows)
    lines = lines[(lines["engine"] == metrics.OWN_ENGINE) & lines["num_draft_tokens"].notna()]
    lines = lines[metrics.has_fixed_length(lines)]
    positions = metrics.acceptance_by_position(rows)
    kept, pieces = metrics.undisturbed(rows), StepTable(costs_of(rows, costs))
    kept = kept[(kept["engine"] == metrics.OWN_ENGINE) & kept["steps"].notna()]
    stages_of_rows = [_stages_of(row, pieces) for _, row in kept.iterrows()]
    per_row = kept.join(pd.DataFrame(stages_of_rows, columns=COSTS, index=kept.index))
    table = []
    for _, line in lines.iterrows():
        rates = _of(positions, line).sort_values("position")["acceptance_rate"].fillna(0).tolist()
        rate, gamma = line["acceptance_rate"], int(line["num_draft_tokens"])
        stages = {"iid": expected_tokens(rate, gamma) if pd.notna(rate) else np.nan}
        stages["by_position"] = expected_tokens_by_position(rates) if rates else np.nan
        stages |= {name: mean_over_prompts(_of(per_row, line), name) for name in COSTS}
        stages["measured"] = line["speedup"]
        facts = {name: line[name] for name in metrics.LINE}
        table.append(facts | stages | {"unexplained": line["speedup"] / stages["host_cost"] - 1})
    return pd.DataFrame(table, columns=[*metrics.LINE, *STAGES, "unexplained"]).assign(note=why_unused(costs, rows))


def passes_per_token(row: pd.Series) -> float:
    """Passes of the target for each token after the first, from the counters of a speculative row."""
    return float(row["steps"] / (row["new_tokens"] - row["batch_size"]))


def context_of(row: pd.Series) -> float:
    """Tokens in the cache halfway through the output of a row."""
    return float(row["mean_prompt_tokens"] + row["max_new_tokens"] / 2)


def _stages_of(row: pd.Series, table: StepTable) -> dict[str, float]:
    batch, gamma, temperature = int(row["batch_size"]), int(row["num_draft_tokens"]), float(row["temperature"])
    context, tokens = context_of(row), 1 / passes_per_token(row)
    all_drafted = gamma * (METHODS[row["method"]].chains if row["method"] in METHODS else 1)
    verified = 1 + (float(row["drafted_tokens"] / row["steps"]) if batch == 1 else all_drafted)  # lookup may find fewer
    one, many = (table.ms("target", batch, context, count, temperature) for count in (1, verified))
    draft = table.drafting_ms(row["method"], batch, context, gamma, temperature)
    choose, verify = (table.ms("sampling", batch, context, count, temperature) for count in (1, verified))
    return {
        "as_emitted": tokens,
        "draft_cost": tokens * one / (one + draft),
        "verify_cost": tokens * one / (many + draft),
        "host_cost": tokens * (one + choose) / (many + draft + verify),
    }


def _of(table: pd.DataFrame, line: pd.Series) -> pd.DataFrame:
    """The rows of `table` that belong to a line."""
    keep = pd.Series(True, index=table.index)
    for name in metrics.LINE:
        keep &= table[name].isna() if pd.isna(line[name]) else (table[name] == line[name]).fillna(False).astype(bool)
    return table[keep]
