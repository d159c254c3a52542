"""What a run leaves in its folder besides the table; reading it loads neither PyTorch nor a library of tables.

`cells/<cell id>.json` holds the rows of a finished cell, and `environment.json` what each run of the folder ran on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specdec_lib.machine.files import write_atomically
from specdec_lib.study.rows.schema import Row, check_columns

ENVIRONMENT = "environment.json"


def write_cell(folder: Path, cell_id: str, rows: list[Row]) -> None:
    """Write all rows of a finished cell at once, so that a reader sees all of them or none.

    Raises:
        ValueError: a row has a column that the schema does not declare.
    """
    check_columns(name for row in rows for name in row)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "cells" / f"{cell_id}.json", json.dumps(rows))


def read_cell(folder: Path, cell_id: str) -> list[Row]:
    """The rows of a cell; none if it has not finished, or if its file is damaged."""
    try:
        rows = json.loads((folder / "cells" / f"{cell_id}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return rows if isinstance(rows, list) else []


def whole_runs(rows: list[Row]) -> list[Row]:
    """The rows of those runs of a cell in which nothing failed."""
    failed = {row["run_id"] for row in rows if row["status"] != "ok"}
    return [row for row in rows if row["run_id"] not in failed]


def write_environment(folder: Path, facts: dict[str, object], run_id: str) -> None:
    """Write the facts of the latest run, and under `runs` those of every run with rows here.

    A run that was killed has no `ended`. `complete` is false until the table is written
    and holds every cell.
    """
    facts = facts | {"ended": None, "complete": False}
    adopt_environment(folder, {"run_id": run_id, **facts, "runs": {run_id: facts}})


def adopt_environment(folder: Path, theirs: dict[str, Any]) -> None:
    """Add what another machine wrote with `write_environment` about its runs of the same study."""
    _write(folder, theirs | {"runs": read_environment(folder).get("runs", {}) | theirs["runs"]})


def add_facts(folder: Path, run_id: str, **facts: object) -> None:
    """Add facts of a run, or replace them."""
    known = read_environment(folder)
    known["runs"][run_id] |= facts
    _write(folder, known | (facts if known["run_id"] == run_id else {}))


def read_environment(folder: Path) -> dict[str, Any]:
    """What `write_environment` wrote; empty if there is nothing yet."""
    path = folder / ENVIRONMENT
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return facts


def _write(folder: Path, facts: dict[str, Any]) -> None:
    write_atomically(folder / ENVIRONMENT, json.dumps(facts, indent=2) + "\n")
