"""How fast the machine was over the run: every call of the baseline, in the order of time."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.metrics import OWN_ENGINE
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.study.rows.drift import BLOCK

CALLS = ["device_name", "block", "batch_size", "repetition", "tpot_ms", "drifted", "minutes", "call", "evidence"]


def baseline_calls(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per timed call of the library's baseline, with the columns `CALLS`.

    `minutes` counts from the first call; it is null for all of them where a row does not say when it began. `call` is
    their number in the order of time or, without times, of the table. `block` numbers the blocks that drift is judged
    by; `drifted` says that the block is excluded.

    Args:
        rows: the results table.
    """
    baseline = (rows["engine"] == OWN_ENGINE) & (rows["method"] == AUTOREGRESSIVE)
    calls = rows[baseline & (rows["status"] == "ok") & rows["tpot_ms"].notna()]
    calls = calls.assign(block=calls.groupby(list(BLOCK), dropna=False, sort=False).ngroup())
    seconds = calls["started_at"].astype(float)
    if seconds.isna().any():
        calls = calls.sort_values(["block", "repetition"]).assign(minutes=float("nan"))
    else:
        calls = calls.assign(minutes=(seconds - seconds.min()) / 60).sort_values("minutes")
    calls = calls.assign(call=range(1, len(calls) + 1), drifted=calls["drifted"].fillna(False).astype(bool))
    return calls[CALLS].astype({"tpot_ms": float, "minutes": float}).reset_index(drop=True)
