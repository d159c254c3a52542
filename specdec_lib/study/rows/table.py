"""The table that the rows of a run's cells are gathered into."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import Price, price, usd_per_million_tokens
from specdec_lib.study.rows.drift import mark_drift
from specdec_lib.study.rows.schema import BOOLEAN, COLUMNS, INTEGER, INTEGERS, NUMBER, NUMBERS, TEXT, Row, check_columns
from specdec_lib.study.run_folder import read_cell

FILE = "results.parquet"
_ARROW = {TEXT: pa.string(), INTEGER: pa.int64(), NUMBER: pa.float64(), BOOLEAN: pa.bool_()}
_LISTS = {INTEGERS: pa.list_(pa.int64()), NUMBERS: pa.list_(pa.float64())}
_PANDAS = {TEXT: pd.StringDtype(), INTEGER: pd.Int64Dtype(), NUMBER: pd.Float64Dtype(), BOOLEAN: pd.BooleanDtype()}
_NULLABLE = {_ARROW[kind]: dtype for kind, dtype in _PANDAS.items()}
SCHEMA = pa.schema([pa.field(each.name, (_ARROW | _LISTS)[each.type], nullable=each.nullable) for each in COLUMNS])


def write_results(folder: Path, cell_ids: list[str], usd_per_hour: float) -> pd.DataFrame:
    """Gather the rows of these cells into `results.parquet`, priced, with `drifted` marked; returns the table.

    Raises:
        ValueError: a row has a column that the schema does not declare.
    """
    rows = [row for cell_id in cell_ids for row in read_cell(folder, cell_id)]
    mark_drift(rows)
    for row in rows:
        if row["status"] == "ok":
            rate = float(str(row["tokens_per_second"]))
            row["cost_usd_per_million_tokens"] = usd_per_million_tokens(rate, usd_per_hour)
    temporary = folder / f"{FILE}.tmp"
    pq.write_table(as_table(rows), temporary)
    temporary.replace(folder / FILE)
    return read_results(folder)


def as_table(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table of the schema; what a row leaves out is null.

    Raises:
        ValueError: a row has a column that the schema does not declare.
    """
    rows = list(rows)
    check_columns({name for row in rows for name in row})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def read_results(folder: Path) -> pd.DataFrame:
    """The table of a run, with the columns of today's schema; numbers that are undefined are null.

    A table of an earlier version loses columns that are gone and has nulls in those that came later.

    Raises:
        ValueError: there is no table yet.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: run the sweep first, with make run GPU=<name>")
    found = pq.read_table(path)
    columns = {
        field.name: found[field.name] if field.name in found.column_names else pa.nulls(len(found), field.type)
        for field in SCHEMA
    }
    table: pd.DataFrame = pa.table(columns).to_pandas(types_mapper=_NULLABLE.get)
    return table


def price_of_run(params: StudyParams, threads: Any) -> Price:
    """What an hour of a run costs: of its GPUs, or of one virtual CPU for each thread of all its processes.

    Args:
        threads: of a process, as a row has it; null in rows of earlier versions, which cost what is listed.

    Raises:
        ValueError: no price of that name.
    """
    listed = price(params.price)
    if listed.vcpus is None:
        return listed.times(params.num_devices)
    return listed if pd.isna(threads) else listed.times(int(threads) * params.tensor_parallel)
