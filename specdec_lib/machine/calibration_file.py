"""The calibration of a machine as a run keeps it in `calibration.json`. Reading it needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from specdec_lib.machine.files import write_atomically
from specdec_lib.models.shape import ModelShape

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """What a machine was measured to do, in seconds and bytes; means over interleaved repetitions."""

    device_name: str
    dtype: str
    measured: str  # when
    read_bytes_per_second: float  # one pass over a buffer that no cache holds
    matrix_rows: tuple[int, ...]
    matrix_seconds_per_weight: tuple[float, ...]  # for that many rows, over the target's own weights in turn
    target: ModelShape
    draft: ModelShape
    draft_is_head: bool  # on the target's hidden states: its first pass reads all that the target verified
    draft_seconds_per_weight: tuple[float, ...] | None = None  # as for the matrices, over the draft's own in turn
    draft_bytes_per_weight: float | None = None  # that it reads
    replayed: bool = False  # whether all this was captured and replayed, as the steps of rows with the same mark


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write `calibration.json` into a run's folder."""
    text = json.dumps({"evidence": "measured", **asdict(calibration)}, indent=1)
    write_atomically(Path(folder) / FILE, text + "\n")


def read_calibration(folder: Path) -> Calibration:
    """What `write_calibration` wrote; fields of earlier versions are left out. ValueError if there is none yet."""
    path = Path(folder) / FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: run the study first, with make run GPU=<name>")
    facts = json.loads(path.read_text(encoding="utf-8"))
    if "draft_is_head" not in facts:
        raise ValueError(f"{path} does not say whether the draft is a head: delete it and run the study again")
    return TypeAdapter(Calibration).validate_python(facts)
