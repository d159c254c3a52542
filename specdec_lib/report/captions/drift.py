"""What the baseline says about the machine over the run."""

from __future__ import annotations

import pandas as pd

from specdec_lib.report.captions.phrases import NOTHING
from specdec_lib.study.rows.drift import LIMIT


def finding_drift(calls: pd.DataFrame) -> str:
    """How many blocks are excluded for drift, and over what time the calls lie.

    Args:
        calls: from `drift.baseline_calls`.
    """
    if calls.empty:
        return NOTHING
    excluded = calls.groupby("block")["drifted"].any()
    said = f"{excluded.sum()} of {len(excluded)} blocks are excluded, as their baseline changed by over {LIMIT:.0%}."
    if calls["minutes"].notna().all():
        return f"{said} The calls span {calls['minutes'].max():.0f} minutes."
    return f"{said} This run did not store times, so calls stand in the order of the table."
