"""Rows on disk: one small file for each finished cell. Writing them loads no library of tables."""

from __future__ import annotations

import json
from pathlib import Path

from specdec_lib.machine.files import write_atomically
from specdec_lib.study.schema import Row, check_columns


def write_cell(folder: Path, cell_id: str, rows: list[Row]) -> None:
    """Write all rows of a finished cell at once, so that a reader sees all of them or none.

    Raises:
        ValueError: a row has a column that the schema does not declare.
    """
    for row in rows:
        check_columns(row)
    cells = folder / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    write_atomically(cells / f"{cell_id}.json", json.dumps(rows))


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


def finished(rows: list[Row]) -> bool:
    """Whether a cell with these rows has run, and did not fail."""
    return bool(rows) and all(row["status"] == "ok" for row in rows)
