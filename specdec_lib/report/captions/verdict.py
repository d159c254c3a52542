"""The verdict of a run in words: does it pay, up to which batch size, and what should be set."""

from __future__ import annotations

from typing import Any

import pandas as pd

from specdec_lib.analysis.verdicts import Verdict, verdicts
from specdec_lib.config import StudyParams
from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import temperature_name

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
    """The answer of one temperature, with its speedup."""
    line = verdict.line
    said = f"{answer(line).capitalize()}{why(line)} at batch {line.batch_size}, {temperature_name(line.temperature)}"
    return f"{said}." if pd.isna(line.speedup) else f"{said}: {speedup_text(line)}."


def evidence_sentence(verdict: Verdict) -> str:
    """What the answer is of, and up to which batch size it holds."""
    line = verdict.line
    if pd.isna(line.speedup):
        return ""
    method = f"{label(line.method)}, γ = {line.num_draft_tokens}, chosen before the run"
    return f"By {method}, over {line.num_prompts} prompts; whole calls {line.e2e_speedup:.2f}×.{_batches(verdict)}"


def in_short(rows: pd.DataFrame, params: StudyParams) -> str:
    """The verdicts of a run, finished or not, for the last lines of a command."""
    found = verdicts(rows, params)
    said = "\n".join(f"{verdict_sentence(each)} {evidence_sentence(each)}".rstrip() for each in found)
    return said or f"no row of {label(params.methods[0])} counts, so that there is no verdict."


def best_sentence(verdict: Verdict) -> str:
    """The fastest measured setting, how many it is the best of, and the verdict's own on the same prompts."""
    best, line, there = verdict.best, verdict.line, verdict.there
    if best is None:
        return "No speculative setting was measured."
    if verdict.tried == 1:
        return "No other setting was measured."
    tried = f"Of {verdict.tried} settings on the {best.num_prompts} prompts that ran all of them,"
    if (best.method, best.num_draft_tokens) == (line.method, line.num_draft_tokens):
        return f"{tried} this is the fastest: {speedup_text(best)} there."
    name = f"{label(best.method)}, γ = {best.num_draft_tokens}"
    own = f"; the verdict's has {speedup_text(there)} there" if there is not None else ""
    return f"{tried} {name} is the fastest: {speedup_text(best)}{own}."


def _batches(verdict: Verdict) -> str:
    """At each larger batch size measured, what one user and what all users together gain."""
    larger = [each for each in verdict.batches if each.batch_size > verdict.line.batch_size]
    said = [f"{each.speedup:.2f}× and {each.e2e_speedup:.2f}× at batch {each.batch_size}" for each in larger]
    return f" Per token and in total throughput: {', '.join(said)}." if said else ""
