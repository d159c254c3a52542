"""What a fixed output length does: acceptance and speedup up to the first stop token of a text, and after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from specdec_lib.analysis.headline import at_headline
from specdec_lib.analysis.metrics import PAIRED_BY, distinct_outputs, undisturbed
from specdec_lib.analysis.statistics import over_prompts
from specdec_lib.config import StudyParams
from specdec_lib.methods import AUTOREGRESSIVE

PARTS = {"to_stop": "up to the stop", "past_stop": "after it"}
COLUMNS = ["method", "num_draft_tokens", "temperature", "part", "tokens_share", "acceptance_rate"]
COLUMNS += ["speedup", "speedup_low", "speedup_high", "num_prompts", "evidence"]


def stop_lines(rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """Two lines per method and temperature at the headline setting: up to the first stop token, and after it.

    Both parts are of the same calls: those that reached a stop, and whose baseline did, with tokens left after it.
    `tokens_share` is the part's share of their tokens. Speedups are paired by prompt and repetition, like the headline.
    Above temperature 0 the two texts differ, and so do the places of their stops.

    Args:
        rows: the results table of a run; without counts up to a stop there is no line.
    """
    counted = undisturbed(at_headline(rows, params))
    stopped = (counted["stopped_prompts"] == counted["batch_size"]) & counted["tpot_past_stop_ms"].notna()
    counted = counted[stopped.fillna(False).astype(bool) & counted["tpot_to_stop_ms"].notna()]
    if counted.empty:
        return pd.DataFrame(columns=COLUMNS)
    baseline = counted.loc[counted["method"] == AUTOREGRESSIVE, [*PAIRED_BY, *(f"tpot_{part}_ms" for part in PARTS)]]
    paired = counted.merge(baseline, on=PAIRED_BY, suffixes=("", "_reference"))
    lines = [
        {"method": key[0], "num_draft_tokens": key[1], "temperature": key[2]} | _part(group, part)
        for key, group in paired.groupby(["method", "num_draft_tokens", "temperature"])
        for part in PARTS
    ]
    return pd.DataFrame(lines, columns=COLUMNS).assign(evidence="measured")


def _part(group: pd.DataFrame, part: str) -> dict[str, Any]:
    """The counts and times of one part of the texts of a method at a temperature."""
    outputs = distinct_outputs(group)
    totals = {name: (f"{name}_tokens", f"{name}_to_stop") for name in ("tested", "accepted")}
    totals["emitted"] = ("new_tokens", "tokens_to_stop")
    sums = {}
    for name, (every, before) in totals.items():
        up_to = float(outputs[before].sum())
        sums[name] = up_to if part == "to_stop" else float(outputs[every].sum()) - up_to
    ratio = group[f"tpot_{part}_ms_reference"].astype(float) / group[f"tpot_{part}_ms"].astype(float)
    speedup = over_prompts(group.assign(ratio=ratio), "ratio")
    return {
        "part": PARTS[part],
        "tokens_share": sums["emitted"] / float(outputs["new_tokens"].sum()),
        "acceptance_rate": sums["accepted"] / sums["tested"] if sums["tested"] else np.nan,
        "speedup": speedup.value,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "num_prompts": speedup.count,
    }
