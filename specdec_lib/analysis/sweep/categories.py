"""Speedup and acceptance by what is decoded: the category of the prompts."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.headline import at_headline
from specdec_lib.analysis.metrics import speedups, with_ratios
from specdec_lib.config import StudyParams
from specdec_lib.methods import AUTOREGRESSIVE

PROMPT = ["temperature", "method", "category", "prompt_group", "prompt_ids", "evidence"]


def category_lines(rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """One line per speculative method, category and temperature at the headline setting, as `metrics.speedups` makes.

    Rows of a batch of several categories have none and are left out.

    Args:
        rows: the results table of a run.
    """
    lines = speedups(_of_one_category(rows, params), by=["category"])
    return lines[lines["method"] != AUTOREGRESSIVE].reset_index(drop=True)


def prompt_ratios(rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """One line per prompt group, speculative method and temperature at the headline setting.

    `speedup` is the median over repetitions. A prompt group without a baseline has no line.

    Args:
        rows: the results table of a run.
    """
    paired = with_ratios(_of_one_category(rows, params))
    paired = paired[(paired["method"] != AUTOREGRESSIVE) & paired["speedup"].notna()]
    ratios = paired.groupby(PROMPT, as_index=False, dropna=False)["speedup"].median()
    return ratios.astype({"speedup": "float64"})


def best_and_worst(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of the categories that gain most and least, two for each temperature; `gain` says which.

    Of each category its fastest method counts: what a reader gets who chooses well for it. A temperature that has one
    category has one line, with the gain "only".

    Args:
        lines: from `category_lines`.
    """
    known = lines[lines["speedup"].notna()].sort_values("speedup", ascending=False, kind="stable")
    best = known.drop_duplicates(["temperature", "category"])
    ends = pd.concat([best.groupby("temperature").head(1), best.groupby("temperature").tail(1)])
    single = ends.duplicated(["temperature", "category"], keep=False)
    least = ends.duplicated("temperature")
    ends = ends.assign(gain=least.map({False: "most", True: "least"}).mask(single, "only"))
    return ends.drop_duplicates(["temperature", "category"]).sort_values(
        "temperature", kind="stable", ignore_index=True
    )


def _of_one_category(rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    here = at_headline(rows, params)
    return here[here["category"].notna()]
