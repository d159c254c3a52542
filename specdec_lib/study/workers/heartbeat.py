"""What a worker is doing, in one small file beside the rows: whoever watches it can say where it died."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from specdec_lib.study.cell_files import Row, write_at_once

FILE = "heartbeat.json"
LOAD, CELL, MACHINE = "load", "cell", "machine"  # the phases of a worker


@dataclass(frozen=True)
class Heartbeat:
    """One phase of a worker; `row` is the beginning of the row that the present repetition will become."""

    phase: str
    run_id: str | None = None
    row: Row | None = None
    pid: int = 0


def beat(folder: Path, phase: str, run_id: str | None = None, row: Row | None = None) -> None:
    """Say that this process enters a phase, or the next repetition of a cell."""
    facts = asdict(Heartbeat(phase, run_id, row, os.getpid()))
    write_at_once(folder / FILE, json.dumps(facts))


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """The last word of the worker on this folder; None before its first."""
    try:
        return Heartbeat(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def forget(folder: Path) -> None:
    """Remove what an earlier worker left."""
    (folder / FILE).unlink(missing_ok=True)
