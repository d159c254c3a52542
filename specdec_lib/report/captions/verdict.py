"""The verdict of a run in words: does it pay, up to which batch size, and what should be set."""

from __future__ import annotations

from typing import Any

import pandas as pd

from specdec_lib.analysis.verdicts import Verdict, verdicts
from specdec_lib.config import StudyParams
from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import temperature_name, where_it_pays

YES, NO, UNCLEAR = "yes", "no", "unclear"


def answer(line: Any) -> str:
    """Whether speculation pays, in one word: yes or no only if the whole interval says so."""
    if pd.isna(line.speedup_low):
        return UNCLEAR
    return YES if line.speedup_low > 1 else NO if line.speedup_high < 1 else UNCLEAR


def why(line: Any) -> str:
    """The reason for an answer that is unclear, in brackets; nothing for the others."""
    if answer(line) != UNCLEAR:
        return ""
    if pd.isna(line.speedup):
        return " (not measured)"
    return " (too few prompts for an interval)" if pd.isna(line.speedup_low) else " (the interval holds 1)"


def speedup_text(line: Any, name: str = "speedup") -> str:
    """A speedup with its 95 % interval, in short; `name` is its column."""
    value, low, high = (getattr(line, f"{name}{end}") for end in ("", "_low", "_high"))
    if pd.isna(value):
        return "–"
    return f"{value:.2f}×" + (f" ({low:.2f} to {high:.2f})" if pd.notna(low) and low != high else "")


def verdict_sentence(verdict: Verdict) -> str:
    """The answer of one temperature with its evidence, and where it ends."""
    line = verdict.line
    said = f"{answer(line).capitalize()}{why(line)} at batch {line.batch_size}, {temperature_name(line.temperature)}"
    if pd.isna(line.speedup):
        return f"{said}."
    evidence = f"{speedup_text(line)} over {line.num_prompts} prompts, whole calls {line.e2e_speedup:.2f}×"
    method = f"by {label(line.method)}, γ = {line.num_draft_tokens}, fixed before the run"
    return f"{said}: {evidence}, {method}.{_batches(verdict)}"


def in_short(rows: pd.DataFrame, params: StudyParams) -> str:
    """The verdicts of a run, finished or not, for the last lines of a command."""
    said = "\n".join(map(verdict_sentence, verdicts(rows, params)))
    return said or f"no row of {label(params.methods[0])} counts, so that there is no verdict."


def best_sentence(verdict: Verdict) -> str:
    """The fastest measured setting, and how many it is the best of."""
    if verdict.best is None:
        return "No speculative setting was measured."
    best, among = verdict.best, f", best of {verdict.tried} settings" if verdict.tried > 1 else ""
    name = f"{label(best.method)}, γ = {best.num_draft_tokens}"
    return f"Fastest measured: {name}: {speedup_text(best)}{among} on {best.num_prompts} prompts."


def _batches(verdict: Verdict) -> str:
    return "" if verdict.crossover is None else f" It pays {where_it_pays(verdict.crossover)}."
