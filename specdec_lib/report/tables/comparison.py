"""The tables of the comparison of GPUs for readers."""

from __future__ import annotations

import pandas as pd

from specdec_lib.report.tables.readable import Format, readable


def headlines_table(table: pd.DataFrame) -> pd.DataFrame:
    """The headline of every machine."""
    columns = ["gpu", "product", "pair", "method", "num_draft_tokens", "temperature", "batch_size", "tpot_ms"]
    columns += ["speedup", "tokens_per_second", "acceptance_rate", "memory_bytes", "energy_joules_per_token"]
    return readable(table, [*columns, "usd_per_million_tokens", "evidence"])


def front_table(lines: pd.DataFrame) -> pd.DataFrame:
    """The settings on the fronts, each front from the fastest to the cheapest; from `comparison.pareto`."""
    front = lines[lines["on_front"].astype(bool)].sort_values(["pair", "temperature", "tpot_ms"])
    columns = ["pair", "temperature", "gpu", "method", "num_draft_tokens", "batch_size", "tpot_ms"]
    return readable(front, [*columns, "usd_per_million_tokens", "evidence"])


def error_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Measured against predicted, point by point; from `calibrated.error_table`."""
    columns = ["quantity", "batch_size", "context_tokens", "num_tokens", "temperature", "sample"]
    return readable(table, [*columns, "measured_ms", "predicted_ms", "error"])


def published_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Published against predicted, with source and remarks."""
    return readable(table, ["setting", "published", "predicted", "ratio", "source", "note"])


def break_even_table(table: pd.DataFrame) -> pd.DataFrame:
    """What vendors ask for the dearer of two GPUs, and up to which ratio it is the cheaper per token."""
    formats = {
        "date": Format("read on"),
        "ratio": Format("ratio asked", "{:.2f}"),
        "break_even": Format("break-even ratio", "{:.2f}"),
        "break_even_without": Format("without speculation", "{:.2f}"),
    }
    return readable(table, ["vendor", *formats, "evidence"], formats)


def memory_table(plan: pd.DataFrame) -> pd.DataFrame:
    """What each pair needs, and the largest batch that fits; from `comparison.memory_plan`."""
    formats = {
        "tokens": Format("tokens of a row", "{:,}"),
        "weights_bytes": Format("weights (GB)", "{:.1f}", 1e-9),
        "first_bytes": Format("batch 1 (GB)", "{:.1f}", 1e-9),
        "row_bytes": Format("each further row (GB)", "{:.2f}", 1e-9),
    }
    sizes = [name for name in plan if name.startswith("fits_")]
    formats |= {name: Format(f"batch on {name.removeprefix('fits_')} GB", "{:,}") for name in sizes}
    shown = plan.assign(**{name: plan[name].where(plan[name] > 0).astype("Int64") for name in sizes})
    return readable(shown, ["pair", *formats, "evidence"], formats)
