"""What a machine of a cluster does with a group of blocks: the same as a run at home, in a folder of its own.

Reports are sent as soon as there is something new, so that a machine that is lost loses no finished cell.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec_lib.config import StudyParams
from specdec_lib.machine import calibration_file, step_costs
from specdec_lib.study import machine_measurement, transcripts
from specdec_lib.study.cell_files import read_cell
from specdec_lib.study.environment_file import read_environment
from specdec_lib.study.schema import Row
from specdec_lib.study.workers.supervisor import PACKAGES, run_blocks

POLL_S = 0.5
MACHINE_FILES = (calibration_file.FILE, step_costs.FILE, machine_measurement.KEY_FILE, transcripts.FILE)
CODE = (".py", ".cpp", ".yaml", ".jsonl")
Cells = dict[str, list[Row]]


@dataclass(frozen=True)
class GroupTask:
    """A group of blocks, with all that decides how they run."""

    params: StudyParams
    blocks: tuple[int, ...]
    machine: bool  # also measure calibration, costs of a step and transcripts
    files: dict[str, str]  # what is known of the machine
    code: str  # `code_hash` of the sender
    threads: str | None  # its OMP_NUM_THREADS
    command: tuple[str, ...]  # what starts a worker
    limit_s: float | None


@dataclass(frozen=True)
class Report:
    """What is new in a task's folder: finished cells, the environment, files about the machine."""

    cells: Cells = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def code_hash() -> str:
    """A hash of this library's files: all machines of a run must have the same."""
    package = PACKAGES / "specdec_lib"
    files = sorted(path for path in package.rglob("*") if path.suffix in CODE)
    parts = (f"{path.relative_to(package)}".encode() + path.read_bytes() for path in files)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def run_group(task: GroupTask, place: Mapping[str, object]) -> Iterator[Report]:
    """Run a task's blocks on this machine, and report each cell as it ends.

    Args:
        place: what to note of this machine in the environment of its runs.

    Raises:
        ValueError: the study cannot run here: another version of the library, the wrong device, damaged weights.
        RuntimeError: the folder cannot be written, or workers die before their first cell.
    """
    if code_hash() != task.code:
        raise ValueError(f"{socket.gethostname()} has another specdec_lib: check out the same commit on every machine")
    _undo_ray_defaults(task.threads)
    place = {**place, "niceness": os.getpriority(os.PRIO_PROCESS, 0)}
    with tempfile.TemporaryDirectory(prefix="specdec-") as work, ThreadPoolExecutor(1) as pool:
        folder = Path(work)
        for name, text in task.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        sent: Cells = {}
        known = Report()
        run = pool.submit(
            run_blocks,
            task.params,
            folder,
            blocks=task.blocks,
            machine=task.machine,
            limit_s=task.limit_s,
            command=task.command,
        )
        while True:
            ended = bool(wait([run], POLL_S).done)
            report = _news(folder, sent, known, place)
            if report != Report():
                yield report
            if report.environment:
                known = report
            sent |= report.cells
            if ended:
                break
        run.result()  # raises its error
        yield Report(files=machine_files(folder))


def machine_files(folder: Path) -> dict[str, str]:
    """The files about a machine that a folder holds, by name."""
    paths = [folder / name for name in MACHINE_FILES]
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.exists()}


def _news(folder: Path, sent: Cells, known: Report, place: Mapping[str, object]) -> Report:
    found = {path.stem: read_cell(folder, path.stem) for path in sorted((folder / "cells").glob("*.json"))}
    facts = read_environment(folder)
    for run in facts.get("runs", {}).values():
        run["place"] = dict(place)
    return Report(
        cells={cell_id: rows for cell_id, rows in found.items() if rows and rows != sent.get(cell_id)},
        environment=facts if facts != known.environment else {},
    )


def _undo_ray_defaults(threads: str | None) -> None:
    """Undo Ray's number of threads and (where permitted) its low priority."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(0, os.getpriority(os.PRIO_PROCESS, 0)))
    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = threads
