"""The table that the rows of a run's finished cells are gathered into."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from specdec_lib.hardware.catalog import usd_per_million_tokens
from specdec_lib.study.cell_files import read_cell
from specdec_lib.study.drift import mark_drift

INTEGERS = pa.list_(pa.int64())
NUMBERS = pa.list_(pa.float64())
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("run_id", "cell_id")]
    + [("benchmark_version", pa.int64())]
    + [(name, pa.string()) for name in ("status", "error", "evidence", "gpu", "device_name", "host")]
    + [(name, pa.string()) for name in ("engine", "pair")]
    + [(name, pa.string()) for name in ("target_id", "draft_id", "method", "verification")]
    + [("num_draft_tokens", pa.int64()), ("temperature", pa.float64()), ("top_k", pa.int64()), ("top_p", pa.float64())]
    + [("dtype", pa.string()), ("compiled", pa.bool_()), ("replayed", pa.bool_())]
    + [(name, pa.int64()) for name in ("batch_size", "prompt_tokens", "max_new_tokens")]
    + [("mean_prompt_tokens", pa.float64()), ("prompt_set", pa.string()), ("prompt_group", pa.int64())]
    + [("prompt_ids", pa.string()), ("category", pa.string()), ("repetition", pa.int64()), ("seed", pa.int64())]
    + [("tokens_sha256", pa.string())]
    + [(name, pa.int64()) for name in ("new_tokens", "steps", "drafted_tokens", "tested_tokens", "accepted_tokens")]
    + [("accepted_by_position", INTEGERS), ("tested_by_position", INTEGERS)]
    + [(name, pa.float64()) for name in ("acceptance_rate", "draft_efficiency", "mean_acceptance_length")]
    + [(name, pa.float64()) for name in ("ttft_ms", "tpot_ms", "itl_p50_ms", "itl_p90_ms", "itl_p99_ms")]
    + [("tokens_per_second", pa.float64()), ("step_ms", NUMBERS), ("step_tokens", NUMBERS)]
    + [(f"{name}_bytes", pa.int64()) for name in ("peak_memory_allocated", "peak_memory_reserved")]
    + [(f"{name}_bytes", pa.int64()) for name in ("device_memory_used", "process_peak_rss")]
    + [(name, pa.float64()) for name in ("gpu_utilization_percent", "energy_joules_per_token")]
    + [("throttled", pa.bool_()), ("throttle_reasons", pa.string()), ("sm_clock_mhz", pa.float64())]
    + [("foreign_processes", pa.int64()), ("telemetry_note", pa.string()), ("drifted", pa.bool_())]
    + [("cost_usd_per_million_tokens", pa.float64())]
)


def write_results(folder: Path, cell_ids: list[str], usd_per_hour: float) -> pd.DataFrame:
    """Gather the rows of these cells into `results.parquet`, priced, with `drifted` marked; returns the table."""
    rows = [row for cell_id in cell_ids for row in read_cell(folder, cell_id)]
    mark_drift(rows)
    for row in rows:
        if row["status"] == "ok":
            rate = float(str(row["tokens_per_second"]))
            row["cost_usd_per_million_tokens"] = usd_per_million_tokens(rate, usd_per_hour)
    columns = {field.name: [row.get(field.name) for row in rows] for field in SCHEMA}
    table = pa.table(columns, schema=SCHEMA)
    temporary = folder / "results.parquet.tmp"
    pq.write_table(table, temporary)
    temporary.replace(folder / "results.parquet")
    return read_results(folder)


def read_results(folder: Path) -> pd.DataFrame:
    """The table of a run; numbers that are undefined are null.

    Raises:
        ValueError: there is no table yet.
    """
    path = Path(folder) / "results.parquet"
    if not path.exists():
        raise ValueError(f"{path} is missing: run the sweep first, with make run GPU=<name>")
    table = pd.read_parquet(path, dtype_backend="numpy_nullable")
    return table.assign(**{name: pd.NA for name in SCHEMA.names if name not in table})  # columns that came later
