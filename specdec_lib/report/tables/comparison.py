"""Tables of the comparison for readers: human headings, units, rounded numbers, and the evidence of each line."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from specdec_lib.report.figures.style import METHOD_NAMES

UNDEFINED = "–"
_HEADINGS = {  # column: heading, format
    "gpu": ("study", "{}"),
    "product": ("product", "{}"),
    "pair": ("pair", "{}"),
    "dtype": ("dtype", "{}"),
    "method": ("method", "{}"),
    "num_draft_tokens": ("γ", "{:.0f}"),
    "temperature": ("T", "{:g}"),
    "batch_size": ("batch", "{:.0f}"),
    "prompt_tokens": ("prompt", "{:.0f}"),
    "max_new_tokens": ("output", "{:.0f}"),
    "limit_ms": ("limit (ms)", "{:g}"),
    "tpot_ms": ("TPOT (ms)", "{:.2f}"),
    "speedup": ("speedup (×)", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:.1f}"),
    "acceptance_rate": ("acceptance rate", "{:.3f}"),
    "memory_bytes": ("peak memory (GiB)", "{:.2f}"),
    "joules_per_token": ("MJ per million tokens", "{:.3g}"),
    "usd_per_million_tokens": ("$ per million tokens", "{:#.3g}"),
    "crossover_batch": ("B*", "{:.1f}"),
    "reading": ("reading", "{}"),
    "measured_ms": ("measured (ms)", "{:.2f}"),
    "predicted_ms": ("predicted (ms)", "{:.2f}"),
    "error": ("error", "{:+.0%}"),
    "interval": ("interval, to 15 %", "{}"),
    "quantity": ("quantity", "{}"),
    "context_tokens": ("context", "{:.0f}"),
    "num_tokens": ("tokens of a pass", "{:.0f}"),
    "sample": ("sample", "{}"),
    "point": ("point", "{}"),
    "setting": ("setting", "{}"),
    "published": ("published", "{:.4g}"),
    "predicted": ("predicted", "{:.3g}"),
    "ratio": ("ratio", "{:.2f}"),
    "source": ("source", "{}"),
    "note": ("note", "{}"),
    "vendor": ("vendor", "{}"),
    "region": ("region", "{}"),
    "dates": ("read on", "{}"),
    "evidence": ("evidence", "{}"),
}
_BANDS = {
    "tpot_ms": "TPOT band",
    "speedup": "95 % interval or band",
    "crossover_batch": "95 % interval or band",
    "predicted": "band",
    "measured_ms": "95 % interval",
}
_BAND_COLUMNS = {"crossover_batch": "crossover"}


def readable(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a table with headings and units; the interval or band of a number stands beside it."""
    made = {}
    for name in columns:
        heading, form = _HEADINGS[name]
        made[heading] = [_text(_scaled(name, value), form) for value in table[name]]
        stem = _BAND_COLUMNS.get(name, name)
        if name in _BANDS and f"{stem}_low" in table:
            ends = zip(table[f"{stem}_low"], table[f"{stem}_high"], strict=True)
            made[_BANDS[name]] = [
                f"{_text(low, form)} to {_text(high, form)}" if low < high else UNDEFINED for low, high in ends
            ]
    return pd.DataFrame(made)


def side_by_side_table(table: pd.DataFrame) -> pd.DataFrame:
    """The headline of every machine."""
    columns = [
        "gpu",
        "product",
        "pair",
        "method",
        "num_draft_tokens",
        "temperature",
        "batch_size",
        "tpot_ms",
        "speedup",
    ]
    columns += ["tokens_per_second", "acceptance_rate", "memory_bytes", "joules_per_token", "usd_per_million_tokens"]
    return readable(table, [*columns, "evidence"])


def crossover_table(table: pd.DataFrame) -> pd.DataFrame:
    """B* of every setting."""
    columns = ["gpu", "pair", "method", "num_draft_tokens", "temperature", "prompt_tokens", "crossover_batch"]
    return readable(table, [*columns, "reading", "evidence"])


def cheapest_table(table: pd.DataFrame) -> pd.DataFrame:
    """The cheapest setting under each limit."""
    columns = ["limit_ms", "pair", "gpu", "temperature", "method", "num_draft_tokens", "batch_size", "prompt_tokens"]
    return readable(table, [*columns, "max_new_tokens", "tpot_ms", "usd_per_million_tokens", "evidence"])


def error_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Measured against predicted, point by point."""
    columns = ["quantity", "batch_size", "context_tokens", "num_tokens", "temperature", "sample"]
    return readable(table, [*columns, "measured_ms", "predicted_ms", "error", "interval"])


def honesty_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Published against predicted, with source and remarks."""
    return readable(table, ["setting", "published", "predicted", "ratio", "source", "note"])


def _scaled(name: str, value: object) -> object:
    return value / 2**30 if name == "memory_bytes" and pd.notna(value) else value  # type: ignore[operator]


def _text(value: object, form: str) -> str:
    if isinstance(value, str):
        return METHOD_NAMES.get(value, value)
    return UNDEFINED if pd.isna(value) else form.format(value)
