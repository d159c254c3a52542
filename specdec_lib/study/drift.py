"""Whether the machine changed under a block of cells, or was not theirs: which runs of a cell count."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

Row = dict[str, object]
BLOCK = ("run_id", "temperature", "batch_size", "prompt_tokens", "max_new_tokens", "prompt_group")
LIMIT = 0.2
SHORTEST_MS = 100.0  # shorter calls are at the mercy of the scheduler, and tell nothing of the machine


def mark_drift(rows: Iterable[Row]) -> None:
    """Set `drifted` in every measured row: whether its block's baseline TPOT changed by more than `LIMIT`.

    Ratios are paired within a repetition, in random order. Of a steady change over the three repetitions of a block a
    fifth or so is left in the ratio of one repetition (half of it passes in a repetition, over which two cells lie 0.41
    of its length apart, root mean square): 4 % at the limit of 20 %, about as much as repetitions scatter anyway. What
    drifts further is no measurement. Null where there are no two baseline repetitions of `SHORTEST_MS` to compare.
    """
    blocks: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            blocks[tuple(row[name] for name in BLOCK)].append(row)
    for block in blocks.values():
        changed = drifted([row for row in block if (row["engine"], row["method"]) == ("specdec_lib", "autoregressive")])
        for row in block:
            row["drifted"] = changed


def undisturbed_runs(rows: Iterable[Row]) -> list[Row]:
    """The rows of a cell from those runs in which no repetition ran throttled or beside other processes."""
    return [row for run in _by_run(rows) if not any(map(_disturbed, run)) for row in run]


def steady_runs(baseline: Iterable[Row]) -> list[Row]:
    """The rows of a block's baseline from those undisturbed runs in which it did not drift, as far as can be said."""
    return [row for run in _by_run(undisturbed_runs(baseline)) if not drifted(run) for row in run]


def _disturbed(row: Row) -> bool:
    return bool(row.get("throttled") or row.get("foreign_processes"))


def _by_run(rows: Iterable[Row]) -> list[list[Row]]:
    runs: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        runs[row["run_id"]].append(row)
    return list(runs.values())


def drifted(baseline: list[Row]) -> bool | None:
    """Of the rows of one block's baseline in one run; None if that cannot be said."""
    long = [row for row in baseline if row["tpot_ms"] and _decode_ms(row) >= SHORTEST_MS]
    if len(long) < 2 or len(long) < len(baseline):
        return None
    first, *_, last = sorted(long, key=lambda row: int(str(row["repetition"])))
    return abs(math.log(float(str(last["tpot_ms"])) / float(str(first["tpot_ms"])))) > math.log(1 + LIMIT)


def _decode_ms(row: Row) -> float:
    step_ms = row["step_ms"]
    assert isinstance(step_ms, list)
    return sum(step_ms)
