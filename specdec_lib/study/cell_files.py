"""Rows on disk: one small file for each finished cell. What measures writes these, and loads no library of tables."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

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
