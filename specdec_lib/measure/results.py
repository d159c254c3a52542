"""Result rows on disk: one small file per finished cell, gathered into one table."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from specdec_lib.hardware.catalog import usd_per_million_tokens
from specdec_lib.measure.drift import mark_drift

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
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}

Row = dict[str, object]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a file system's refusal into one line that says what to do.

    Raises:
        RuntimeError: the disk is full, `folder` is read-only, or the like.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise RuntimeError(
            f"cannot write to {folder} ({error.strerror}): what is finished there is kept; make room or choose another "
            "folder with --outputs, then run the same command again"
        ) from error


def write_at_once(path: Path, text: str) -> None:
    """Put a file at its place whole or not at all: a temporary file of this process, then a rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_cell(folder: Path, cell_id: str, rows: list[Row]) -> None:
    """Put all rows of a finished cell on disk at once, so that a reader sees all of them or none."""
    cells = folder / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    write_at_once(cells / f"{cell_id}.json", json.dumps(rows))


def read_cell(folder: Path, cell_id: str) -> list[Row]:
    """The rows of a cell; none if it has not finished, or if its file is damaged."""
    path = folder / "cells" / f"{cell_id}.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return rows if isinstance(rows, list) else []


def cells_on_disk(folder: Path) -> set[str]:
    """The ids of all cells that have a file, of whatever study."""
    return {path.stem for path in (folder / "cells").glob("*.json")}


def remove_temporary_files(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for path in (*folder.glob("*.tmp"), *folder.glob("cells/*.tmp")):
        path.unlink(missing_ok=True)


def whole_runs(rows: list[Row]) -> list[Row]:
    """The rows of those runs of a cell in which nothing failed."""
    failed = {row["run_id"] for row in rows if row["status"] != "ok"}
    return [row for row in rows if row["run_id"] not in failed]


def finished(folder: Path, cell_id: str) -> bool:
    """Whether the cell has run, and did not fail."""
    rows = read_cell(folder, cell_id)
    return bool(rows) and all(row["status"] == "ok" for row in rows)


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
