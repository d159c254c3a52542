"""What the figures of categories and of target passes show, computed from their tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from specdec_lib.analysis.statistics import LEAST_VALUES
from specdec_lib.analysis.sweep.categories import best_and_worst
from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import with_interval

NO_CATEGORIES = "No speedup was measured on prompts of one category."
NO_PASSES = "No target pass verified a draft."


def finding_category(lines: pd.DataFrame) -> str:
    """Which categories gain most and least with their fastest method, for each temperature; from `category_lines`.

    Where a category has too few prompts for an interval, the sentence says how many it has.
    """
    ends = best_and_worst(lines)
    if ends.empty:
        return NO_CATEGORIES
    sentences = []
    for temperature, few in ends.groupby("temperature"):
        at, lines_of = _start(temperature), {line.gain: line for line in few.itertuples()}
        if only := lines_of.get("only"):
            sentences.append(f"{at}, only {only.category} prompts were measured: {_measured(only)}.")
        else:
            most, least = lines_of["most"], lines_of["least"]
            sentences.append(f"{at}, {most.category} prompts gain most: {_measured(most)}.")
            sentences.append(f"{least.category.capitalize()} prompts gain least: {_measured(least)}.")
        slower = lines[(lines["temperature"] == temperature) & (lines["speedup"] < 1)]
        if len(slower):
            sentences.append(f"Slower than without speculation: {_named(slower)}.")
    return " ".join(sentences)


def _named(lines: pd.DataFrame) -> str:
    """Methods, each with its categories."""
    named = lines.groupby("method", observed=True)["category"].agg(", ".join)
    return "; ".join(f"{label(method)} on {categories}" for method, categories in named.items())


def finding_passes(passes: pd.DataFrame) -> str:
    """For each temperature the method whose passes emit most tokens, and how many of them emit one token only.

    Args:
        passes: from `passes.tokens_per_pass`, one gamma for each method.
    """
    means = (passes["share"] * passes["tokens"]).groupby([passes["temperature"], passes["method"]]).sum()
    means = means[means > 0]
    if means.empty:
        return NO_PASSES
    sentences = []
    for temperature, method in means.groupby("temperature").idxmax():
        own = passes[(passes["temperature"] == temperature) & (passes["method"] == method)]
        alone = own.loc[own["tokens"] == 1, "share"].iloc[0]
        mean = f"{means[temperature, method]:.2f} tokens per target pass"
        sentences.append(f"{_start(temperature)}, {label(method)} emits most: {mean}.")
        sentences.append(f"{alone:.0%} of its passes emit one token.")
    return " ".join(sentences)


def _start(temperature: float) -> str:
    return "Greedy" if temperature == 0 else f"At T = {temperature:g}"


def _measured(line: Any) -> str:
    """A speedup with its interval or, without one, its number of prompts, and the method."""
    if line.num_prompts >= LEAST_VALUES:
        return f"{with_interval(line)} with {label(line.method)}"
    return f"{line.speedup:.2f}× with {label(line.method)} (n = {line.num_prompts}, no interval)"
