"""Whether the machine changed during a block of cells, or other processes used it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.study.schema import Row

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
        changed = drifted([row for row in block if _is_baseline(row)])
        for row in block:
            row["drifted"] = changed


def unsteady(rows: Iterable[Row]) -> bool:
    """Whether one measurement of a block drifted, or ran throttled or together with other processes."""
    measured = [row for row in rows if row["status"] == "ok"]
    disturbed = any(row.get("throttled") or row.get("foreign_processes") for row in measured)
    return disturbed or bool(drifted([row for row in measured if _is_baseline(row)]))


def drifted(baseline: list[Row]) -> bool | None:
    """Of the rows of one block's baseline in one run; None if that cannot be said."""
    long = [row for row in baseline if row["tpot_ms"] and _decode_ms(row) >= SHORTEST_MS]
    if len(long) < 2 or len(long) < len(baseline):
        return None
    first, *_, last = sorted(long, key=lambda row: int(str(row["repetition"])))
    return abs(math.log(float(str(last["tpot_ms"])) / float(str(first["tpot_ms"])))) > math.log(1 + LIMIT)


def _is_baseline(row: Row) -> bool:
    return (row["engine"], row["method"]) == ("specdec_lib", AUTOREGRESSIVE)


def _decode_ms(row: Row) -> float:
    step_ms = row["step_ms"]
    assert isinstance(step_ms, list)
    return sum(step_ms)
