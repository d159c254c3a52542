"""How many tokens a target pass emits: not the mean alone, but how often each number."""

from __future__ import annotations

import numpy as np
import pandas as pd

from specdec_lib.analysis.metrics import LINE, distinct_outputs, undisturbed
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.study.cells import GIVEN

COLUMNS = [*LINE, "tokens", "passes", "share"]


def tokens_per_pass(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per speculative setting and number of tokens that a target pass can emit (1 to gamma + 1).

    `passes` counts the passes that emitted so many, and `share` divides it by all passes. The counts follow from the
    histogram of accepted positions, so they are exact for every row of a batch, and their mean is
    `mean_acceptance_length`. `step_tokens` says the same at batch size 1 and is a mean over the batch above it.

    Rows that verified nothing, and rows whose acceptance was given, are left out.

    Args:
        rows: the results table of a run, or a part of it.
    """
    counted = distinct_outputs(undisturbed(rows))
    counted = counted[counted["steps"].notna() & counted["accepted_by_position"].notna()]
    counted = counted[(counted["method"] != AUTOREGRESSIVE) & (counted["verification"] != GIVEN)]
    lines = []
    for key, group in counted.groupby(LINE, dropna=False):
        accepted = pd.DataFrame(list(map(list, group["accepted_by_position"]))).sum()
        passes = _passes(int(group["steps"].sum()), accepted.tolist())
        shares = passes / max(passes.sum(), 1)
        lines += [(*key, *line) for line in zip(range(1, len(passes) + 1), passes, shares, strict=True)]
    return pd.DataFrame(lines, columns=COLUMNS).astype({"tokens": int, "passes": int, "share": float})


def _passes(steps: int, accepted_by_position: list[int]) -> np.ndarray:
    """How many of `steps` passes emitted 1, 2, ... tokens: one more than the drafts that they accepted."""
    at_least = np.array([steps, *accepted_by_position, 0], dtype=np.int64)  # accepted 0 or more, 1 or more, ...
    return at_least[:-1] - at_least[1:]
