"""Words that captions, tables and cards share. Plain text: escape it before it enters HTML."""

from __future__ import annotations

from typing import Any

import pandas as pd

from specdec_lib.analysis.sweep import crossover
from specdec_lib.methods import label

NOTHING = "Nothing was measured here: see the failed cells."
GIB = 2**30
_AXES = {
    "num_draft_tokens": "γ = {}",
    "batch_size": "batch size {}",
    "prompt_tokens": "prompts of {} tokens",
    "max_new_tokens": "{} output tokens",
}
_CROSSOVERS = {
    crossover.CROSSES: "below batch {batch:.2g}, interpolated",
    crossover.ALWAYS: "up to batch {largest}, the largest tried",
    crossover.NEVER: "at no batch from {smallest} to {largest}",
    crossover.LATER: "at some larger batch only",
}


def temperature_name(temperature: float) -> str:
    """How a temperature is named in titles and sentences; a prediction has none."""
    if pd.isna(temperature):
        return "any T"
    return "greedy (T = 0)" if temperature == 0 else f"T = {temperature:g}"


def setting(line: Any, axis: str = "num_draft_tokens") -> str:
    """The method of a line, its value on an axis, and its temperature."""
    value = getattr(line, axis)
    if pd.notna(value):
        at = f" with {_AXES[axis].format(value)}"
    else:
        at = " with natural prompts" if axis == "prompt_tokens" else ""
    return f"{label(line.method)}{at} at T = {line.temperature:g}"


def with_interval(line: Any) -> str:
    """A speedup as text, with its interval where there is one."""
    if pd.isna(line.speedup):
        return "not measured"
    if pd.isna(line.speedup_low):
        return f"{line.speedup:.2f}× (no interval)"
    return f"{line.speedup:.2f}× (95 % interval {line.speedup_low:.2f} to {line.speedup_high:.2f})"


def span(values: pd.Series, form: str = "{:.2f}") -> str:
    """The smallest and the largest of some values, or the one value that both are."""
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"


def where_it_pays(line: Any) -> str:
    """The batch sizes at which speculation pays, of a line from `analysis.sweep.crossover`."""
    return _CROSSOVERS[line.outcome].format(
        batch=line.crossover_batch, smallest=line.smallest_batch, largest=line.largest_batch
    )
