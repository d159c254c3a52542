"""Drafts whose length adapts, next to the best fixed length: gain and loss alike."""

from __future__ import annotations

import numpy as np
import pandas as pd

from specdec_lib.analysis.headline import every_length, same_prompts
from specdec_lib.analysis.metrics import speedups, with_ratios
from specdec_lib.analysis.statistics import geometric_mean
from specdec_lib.config import StudyParams
from specdec_lib.methods import AUTOREGRESSIVE, FIXED_LENGTH

WAY = ["method", "temperature", "draft_length"]


def compared_lengths(rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """One line per method, temperature and draft length, each with the gamma that was fastest on the same prompts.

    `gain` is its speedup over that of the fixed length with its own best gamma, paired by prompts: a geometric mean
    with a 95 % interval. Every length may choose its gamma after the fact, so none has an advantage by it. Empty where
    the study has one length alone.

    Args:
        rows: the results table of a run.
    """
    here = same_prompts(every_length(rows, params))
    lines = speedups(here)
    lines = lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna() & lines["draft_length"].notna()]
    best = lines.loc[lines.groupby(WAY)["speedup"].idxmax()] if lines["draft_length"].nunique() > 1 else lines.iloc[:0]
    best = best.reset_index(drop=True)
    by_prompt = with_ratios(here).groupby([*WAY, "num_draft_tokens", "prompt_group"])["speedup"].median().astype(float)
    gains = [_gain(line, best, by_prompt, params.seed) for _, line in best.iterrows()]
    return best.join(pd.DataFrame(gains, columns=["gain", "gain_low", "gain_high"], dtype=float))


def _gain(line: pd.Series, best: pd.DataFrame, by_prompt: pd.Series, seed: int) -> tuple[float, float, float]:
    """The gain over the fixed length, with its interval; 1 and no interval for the fixed length itself."""
    same = (best["method"] == line["method"]) & (best["temperature"] == line["temperature"])
    fixed = best[same & (best["draft_length"] == FIXED_LENGTH)]
    if fixed.empty:
        return np.nan, np.nan, np.nan
    ours, theirs = (by_prompt[tuple(each[[*WAY, "num_draft_tokens"]])] for each in (line, fixed.iloc[0]))
    estimate = geometric_mean((ours / theirs).dropna(), np.random.default_rng(seed))
    return estimate.value, estimate.low, estimate.high
