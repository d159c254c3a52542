"""Tables for readers: human headings with units, rounded numbers, and an en dash for what is undefined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from specdec_lib.analysis.metrics import has_fixed_length
from specdec_lib.analysis.waterfall import STAGES
from specdec_lib.methods import label, length_label, rule_label

UNDEFINED = "–"


class Format(NamedTuple):
    """How readers see a column."""

    heading: str  # with its unit
    form: str = "{}"
    scale: float = 1.0  # what the value is multiplied with
    undefined: str = UNDEFINED


FORMATS = {
    "gpu": Format("study"),
    "num_draft_tokens": Format("γ", "{:.0f}"),
    "draft_length": Format("draft length"),
    "verification": Format("verification"),
    "temperature": Format("T", "{:g}"),
    "batch_size": Format("batch", "{:.0f}"),
    "prompt_tokens": Format("prompt", "{:.0f}", undefined="natural"),
    "max_new_tokens": Format("output", "{:.0f}"),
    "prompt_group": Format("prompt group"),
    "speedup": Format("speedup (×)", "{:.2f}"),
    "gain": Format("over the usual one (×)", "{:.3f}"),
    "num_prompts": Format("prompt groups"),
    "acceptance_rate": Format("acceptance rate", "{:.3f}"),
    "draft_efficiency": Format("draft efficiency", "{:.3f}"),
    "mean_acceptance_length": Format("tokens per target pass", "{:.2f}"),
    "ttft_ms": Format("TTFT (ms)", "{:.1f}"),
    "tpot_ms": Format("TPOT (ms)", "{:.2f}"),
    **{f"itl_{p}_ms": Format(f"ITL {p} (ms)", "{:.2f}") for p in ("p50", "p90", "p99")},
    "tokens_per_second": Format("throughput (tokens/s)", "{:.1f}"),
    "usd_per_million_tokens": Format("$ per million tokens", "{:#.3g}"),
    "break_even_price_ratio": Format("break-even price ratio", "{:.2f}"),
    "peak_memory_allocated_bytes": Format("peak allocated (MiB)", "{:.0f}", 2**-20),
    "peak_memory_reserved_bytes": Format("peak reserved (MiB)", "{:.0f}", 2**-20),
    "device_memory_used_bytes": Format("device memory used (MiB)", "{:.0f}", 2**-20),
    "process_peak_rss_bytes": Format("peak memory of the process (MiB)", "{:.0f}", 2**-20),
    "memory_bytes": Format("peak memory (GiB)", "{:.2f}", 2**-30),
    "energy_joules_per_token": Format("energy (J/token)", "{:.3g}"),
    "decoding_per_second": Format("decoding (tokens/s)", "{:.1f}"),
    "decoding_gain": Format("decoding gain (×)", "{:.2f}"),
    "call_gain": Format("whole-call gain (×)", "{:.2f}"),
    "prefill_share": Format("prompts' share of a call", "{:.0%}"),
    "mean_prompt_tokens": Format("tokens of a prompt", "{:.0f}"),
    "context_tokens": Format("context (tokens)", "{:.0f}"),
    "num_tokens": Format("tokens m of a pass", "{:.0f}"),
    "pass_ms": Format("pass (ms)", "{:.2f}"),
    "verification_cost": Format("v(m)", "{:.2f}"),
    "cost_ratio": Format("c, γ = m", "{:.3f}"),
    **{name: Format(heading, "{:.2f}") for name, heading in STAGES.items()},
    "unexplained": Format("unexplained", "{:+.0%}"),
    "part": Format("part of the text"),
    "tokens_share": Format("share of tokens", "{:.0%}"),
    "crossover_batch": Format("B*", "{:.1f}"),
    "pays": Format("speculation pays"),
    "measured_ms": Format("measured (ms)", "{:.2f}"),
    "predicted_ms": Format("predicted (ms)", "{:.2f}"),
    "error": Format("error", "{:+.0%}"),
    "published": Format("published", "{:.4g}"),
    "predicted": Format("predicted", "{:.3g}"),
    "ratio": Format("ratio", "{:.2f}"),
}
INTERVALS = {  # column: heading of its interval, which stands next to it
    "speedup": "95 % interval",
    "gain": "gain, 95 % interval",
    "break_even_price_ratio": "95 % interval",
    "tpot_ms": "TPOT, interval",
    "crossover_batch": "B*, 95 % interval",
    "measured_ms": "95 % interval of the median",
    "predicted": "band",
}
NAMES = {
    "method": label,
    "draft_length": length_label,
    "verification": rule_label,
}  # how readers see a registry's names
SETTING = ["engine", "method", "draft_length", "verification", "num_draft_tokens", "temperature", "batch_size"]
SETTING += ["prompt_tokens", "max_new_tokens"]


def readable(table: pd.DataFrame, columns: Sequence[str], formats: Mapping[str, Format] = FORMATS) -> pd.DataFrame:
    """These columns of a table for readers; the interval of a number stands next to it.

    The draft length has a column only where it adapts, the verification rule where there are several.

    Args:
        formats: of columns that are not in `FORMATS`, or differ here; a column without a format keeps its name.
    """
    made: dict[str, list[str]] = {}
    predicted = "evidence" in table and bool(table["evidence"].eq("predicted").any())
    for name in columns:
        if name == "draft_length" and has_fixed_length(table).all():
            continue
        if name == "verification" and (name not in table or table[name].nunique() < 2):
            continue
        how = formats.get(name) or FORMATS.get(name) or Format(name)
        values = table[name].map(NAMES[name], na_action="ignore") if name in NAMES else table[name]
        made[how.heading] = [_text(value, how) for value in values]
        low, high = f"{name}_low", f"{name}_high"
        if name in INTERVALS and low in table and table[low].notna().any():
            ends = zip(table[low], table[high], strict=True)
            made[INTERVALS[name] + " or band" * predicted] = [
                UNDEFINED if pd.isna(a) or a == b else f"{_text(a, how)} to {_text(b, how)}" for a, b in ends
            ]
    return pd.DataFrame(made)


def _text(value: object, how: Format) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return how.undefined
    return how.form.format(value * how.scale if how.scale != 1 else value)  # type: ignore[operator]
