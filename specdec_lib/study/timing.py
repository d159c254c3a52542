"""Raw times to the latency columns of the result table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from specdec_lib.decoding.result import DecodeResult

Arrival = tuple[float, int]  # seconds since the call, and how many tokens of every row arrived then


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


def latency_columns(result: DecodeResult) -> dict[str, float | list[float] | None]:
    """TTFT, TPOT, E2E, ITL percentiles (milliseconds) and throughput of one decoding call.

    `tpot_ms` is (t_last - t_first) / (n - 1) for each row, then the mean over rows. The inter-token latencies are
    pooled over rows; tokens of one step arrive together, so speculation has many zeros and some long gaps.
    Undefined (a single token) is None.
    """
    arrivals = [np.array(result.emission_times(row)) for row in range(len(result.tokens))]
    tpot = [(times[-1] - times[0]) / (len(times) - 1) for times in arrivals if len(times) > 1]
    gaps = np.concatenate([np.diff(times) for times in arrivals])
    percentiles = np.percentile(gaps, [50, 90, 99]) * 1e3 if len(gaps) else [None] * 3
    rows = max(len(result.tokens), 1)
    return {
        "ttft_ms": result.ttft_s * 1e3,
        "tpot_ms": float(np.mean(tpot)) * 1e3 if tpot else None,
        "e2e_ms": (result.ttft_s + sum(result.step_s)) * 1e3,
        **{f"itl_p{p}_ms": v if v is None else float(v) for p, v in zip((50, 90, 99), percentiles, strict=True)},
        "tokens_per_second": result.tokens_per_second,
        "step_ms": [seconds * 1e3 for seconds in result.step_s],
        "step_tokens": [sum(counts) / rows for counts in result.step_tokens],
    }
