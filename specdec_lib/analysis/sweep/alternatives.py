"""What a study tries next to its usual way: draft lengths that adapt, other verification rules; gain and loss alike."""

from __future__ import annotations

import numpy as np
import pandas as pd

from specdec_lib.analysis.headline import every_alternative, same_prompts
from specdec_lib.analysis.metrics import speedups, with_ratios
from specdec_lib.analysis.statistics import geometric_mean
from specdec_lib.config import StudyParams
from specdec_lib.methods import AUTOREGRESSIVE, FIXED_LENGTH

USUAL = {"draft_length": FIXED_LENGTH, "verification": "token"}


def compared_alternatives(rows: pd.DataFrame, params: StudyParams, column: str) -> pd.DataFrame:
    """One line per method, temperature and value of `column`, each with the gamma that was fastest on the same prompts.

    `gain` is its speedup over that of the usual value with its own best gamma, paired by prompts: a geometric mean
    with a 95 % interval. Every value may choose its gamma after the fact, so none has an advantage by it. Empty where
    the study has one value alone.

    Args:
        rows: the results table of a run.
        column: "draft_length" or "verification".
    """
    here, way = same_prompts(every_alternative(rows, params, column)), ["method", "temperature", column]
    lines = speedups(here)
    lines = lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna() & lines[column].notna()]
    compared = lines.groupby("temperature")[column].transform("nunique") > 1  # greedy rows have one rule
    lines = lines[compared]
    best = lines.loc[lines.groupby(way)["speedup"].idxmax()].reset_index(drop=True)
    by_prompt = with_ratios(here).groupby([*way, "num_draft_tokens", "prompt_group"])["speedup"].median().astype(float)
    gains = [_gain(line, best, by_prompt, params.seed, way) for _, line in best.iterrows()]
    return best.join(pd.DataFrame(gains, columns=["gain", "gain_low", "gain_high"], dtype=float))


def _gain(
    line: pd.Series, best: pd.DataFrame, by_prompt: pd.Series, seed: int, way: list[str]
) -> tuple[float, float, float]:
    """The gain over the usual value, with its interval; 1 and no interval for the usual value itself."""
    same = (best["method"] == line["method"]) & (best["temperature"] == line["temperature"])
    usual = best[same & (best[way[-1]] == USUAL[way[-1]])]
    if usual.empty:
        return np.nan, np.nan, np.nan
    ours, theirs = (by_prompt[tuple(each[[*way, "num_draft_tokens"]])] for each in (line, usual.iloc[0]))
    estimate = geometric_mean((ours / theirs).dropna(), np.random.default_rng(seed))
    return estimate.value, estimate.low, estimate.high
