"""What a worker is doing, in one small file next to the rows, so that its supervisor can say where it died."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from specdec_lib.machine.files import write_atomically
from specdec_lib.study.rows.schema import Row

FILE = "heartbeat.json"
LOAD, CELL, BETWEEN, MACHINE = "load", "cell", "between cells", "machine"  # the phases of a worker


@dataclass(frozen=True)
class Heartbeat:
    """One phase of a worker; `row` holds the identity columns of the repetition that it decodes."""

    phase: str
    run_id: str | None = None
    row: Row | None = None
    pid: int = field(default_factory=os.getpid)


def write_heartbeat(folder: Path, phase: str, run_id: str | None = None, row: Row | None = None) -> None:
    """Note that this process enters a phase, or the next repetition of a cell."""
    write_atomically(folder / FILE, json.dumps(asdict(Heartbeat(phase, run_id, row))))


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """The latest heartbeat of the worker on this folder; None before its first."""
    try:
        return Heartbeat(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def remove_heartbeat(folder: Path) -> None:
    """Remove the heartbeat of an earlier worker."""
    (folder / FILE).unlink(missing_ok=True)
