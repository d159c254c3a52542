"""The columns of a row that one decoding call gives: what was run, what was decoded, and how long it took."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

from specdec_lib.decoding.result import DecodeResult
from specdec_lib.methods import METHODS
from specdec_lib.study.cells import GIVEN, Cell
from specdec_lib.study.prompts import Encoded
from specdec_lib.study.rows.schema import Row

RATES = ("acceptance_rate", "draft_efficiency", "mean_acceptance_length")
_ONLY_IN_THE_ID = (  # fields of a cell and of its source
    *("source", "repetitions", "seed", "accepted_per_step"),
    *("weights", "software", "prompt_set_hash"),
)

Arrival = tuple[float, int]  # seconds since the call, and how many tokens of every row arrived then


def identity_columns(cell: Cell, repetition: int, prompts: Sequence[Encoded]) -> Row:
    """The columns that say what was run."""
    categories = {prompt.category for prompt, _ in prompts}
    known = asdict(cell) | asdict(cell.source)
    return {
        **{name: value for name, value in known.items() if name not in _ONLY_IN_THE_ID},
        "cell_id": cell.id,
        "host": socket.gethostname(),
        "status": "ok",
        "error": None,
        "evidence": "measured",
        "draft_id": METHODS[cell.method].draft_id(cell.source.draft_id),
        "repetition": repetition,
        "seed": cell.repetition_seed(repetition),
        "started_at": time.time(),
        "prompt_ids": " ".join(prompt.id for prompt, _ in prompts),
        "category": categories.pop() if len(categories) == 1 else None,
        "mean_prompt_tokens": sum(len(ids) for _, ids in prompts) / len(prompts),
    }


def counter_columns(cell: Cell, result: DecodeResult) -> Row:
    """The columns that say what was decoded; null where there was nothing to count.

    Where the acceptance was given, the counters stay and the rates are null: they are no result.
    """
    counters: Row = {
        "steps": result.steps,
        "drafted_tokens": result.drafted,
        "tested_tokens": result.tested,
        "accepted_tokens": result.accepted,
        "accepted_by_position": result.accepted_by_position,
        "tested_by_position": result.tested_by_position,
    }
    rates: Row = {name: getattr(result, name) for name in RATES}
    return {
        "tokens_sha256": fingerprint(result.tokens),
        "new_tokens": result.new_tokens,
        **(counters if result.steps else dict.fromkeys(counters)),
        **(rates if cell.verification != GIVEN else dict.fromkeys(RATES)),
    }


def fingerprint(tokens: Sequence[torch.Tensor]) -> str:
    """For each row of a batch the first 16 hex digits of its tokens' SHA-256, in the order of the rows."""
    hashes = [hashlib.sha256(" ".join(map(str, row.tolist())).encode()).hexdigest() for row in tokens]
    return " ".join(text[:16] for text in hashes)


def latency_columns(result: DecodeResult) -> dict[str, float | list[float] | None]:
    """TTFT, TPOT, E2E, ITL percentiles (milliseconds) and throughput of one decoding call.

    `tpot_ms` is (t_last - t_first) / (n - 1) for each row, then the mean over rows. The inter-token latencies are
    pooled over rows; tokens of one step arrive together, so speculation has many zeros and some long gaps.
    Undefined (a single token) is None.
    """
    arrivals = [np.array(result.emission_times(row)) for row in range(len(result.tokens))]
    tpot = [(times[-1] - times[0]) / (len(times) - 1) for times in arrivals if len(times) > 1]
    gaps = np.concatenate([np.diff(times) for times in arrivals])
    itl = (np.percentile(gaps, [50, 90, 99]) * 1e3).tolist() if len(gaps) else [None] * 3
    rows = max(len(result.tokens), 1)
    return {
        "ttft_ms": result.ttft_s * 1e3,
        "tpot_ms": float(np.mean(tpot)) * 1e3 if tpot else None,
        "e2e_ms": (result.ttft_s + sum(result.step_s)) * 1e3,
        **dict(zip(("itl_p50_ms", "itl_p90_ms", "itl_p99_ms"), itl, strict=True)),
        "tokens_per_second": result.tokens_per_second,
        "step_ms": [seconds * 1e3 for seconds in result.step_s],
        "step_tokens": [sum(counts) / rows for counts in result.step_tokens],
    }


def result_of_arrivals(tokens: list[torch.Tensor], arrivals: Sequence[Arrival]) -> DecodeResult:
    """What another engine emitted, as if we had: its tokens, and when they arrived.

    An engine whose first step emits several tokens gives all of them the time of the first.
    """
    (first_s, first_count), *others = arrivals
    steps = [(first_s, first_count - 1)] * (first_count > 1) + others
    starts = [first_s, *(seconds for seconds, _ in steps)]
    return DecodeResult(
        tokens=tokens,
        ttft_s=first_s,
        step_s=[end - start for start, (end, _) in zip(starts[:-1], steps, strict=True)],
        step_tokens=[[count] * len(tokens) for _, count in steps],
    )
