"""Whether the machine changed during a block of cells, or other processes used it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.study.rows.schema import Row

BLOCK = ("run_id", "temperature", "batch_size", "prompt_tokens", "max_new_tokens", "prompt_group")
LIMIT = 0.2
SHORTEST_MS = 100.0  # shorter calls vary with the scheduler and say nothing about the machine


def mark_drift(rows: Iterable[Row]) -> None:
    """Set `drifted` in every measured row: whether its block's baseline TPOT changed by more than `LIMIT`.

    Ratios are paired within a repetition, in random order, so that most of a steady change cancels. At the limit of
    20 % about 4 % are left in the ratio of one repetition, as much as repetitions scatter anyway. Null where there are
    no two baseline repetitions of `SHORTEST_MS` to compare.
    """
    blocks: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            blocks[tuple(row[name] for name in BLOCK)].append(row)
    for block in blocks.values():
        changed = drifted(block)
        for row in block:
            row["drifted"] = changed


def unsteady(rows: Iterable[Row]) -> bool:
    """Whether one measurement of a block drifted, or ran throttled or together with other processes."""
    measured = [row for row in rows if row["status"] == "ok"]
    disturbed = any(row.get("throttled") or row.get("foreign_processes") for row in measured)
    return disturbed or bool(drifted(measured))


def drifted(block: Iterable[dict[str, Any]]) -> bool | None:
    """Of the measured rows of one block in one run, by its baseline; None if that cannot be said."""
    baseline = [row for row in block if (row["engine"], row["method"]) == ("specdec_lib", AUTOREGRESSIVE)]
    if len(baseline) < 2 or not all(row["tpot_ms"] and sum(row["step_ms"]) >= SHORTEST_MS for row in baseline):
        return None
    first, *_, last = sorted(baseline, key=lambda row: row["repetition"])
    return abs(math.log(last["tpot_ms"] / first["tpot_ms"])) > math.log(1 + LIMIT)
