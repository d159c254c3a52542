"""Where a text of fixed length would have stopped by itself, and what drafting was like up to there and after it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from specdec_lib.decoding.result import DecodeResult
from specdec_lib.study.rows.schema import Row


def stop_columns(result: DecodeResult, stop_token_ids: Collection[int]) -> Row:
    """The counts and times of a call up to the first stop token of each prompt, and its time per token after it.

    A step is not divided: what it emitted and tested, and its time, belong to the part in which it began. Counts of
    draft tokens are null for the baseline, and all are null where no stop token is known.
    """
    if not stop_token_ids:
        return {}
    stops = [_first_stop(tokens.tolist(), stop_token_ids) for tokens in result.tokens]
    ends, tested, accepted = [], 0, 0  # tokens of each row at the end of the step that emitted its stop
    for row, stop in enumerate(stops):
        known = 1  # the prefill's token
        for step, emitted in enumerate(result.step_tokens):
            if known >= stop:
                break
            known += emitted[row]
            if result.steps:
                tested += result.step_tested[step][row]
                accepted += min(result.step_tested[step][row], max(emitted[row] - 1, 0))
        ends.append(known)
    columns: Row = {
        "stopped_prompts": sum(
            int(row[stop - 1]) in stop_token_ids for row, stop in zip(result.tokens, stops, strict=True)
        ),
        "tokens_to_stop": sum(ends),
        **_times(result, ends),
    }
    return columns | ({"tested_to_stop": tested, "accepted_to_stop": accepted} if result.steps else {})


def _first_stop(tokens: list[int], stop_token_ids: Collection[int]) -> int:
    """How many tokens there are up to and with the first stop token; all where there is none."""
    return next((place for place, token in enumerate(tokens, start=1) if token in stop_token_ids), len(tokens))


def _times(result: DecodeResult, ends: list[int]) -> Row:
    """Milliseconds per token up to the end of that step and after it, a mean over prompts; null where there is none."""
    before, after = [], []
    for row, end in enumerate(ends):
        times = np.array(result.emission_times(row)) * 1e3
        if end > 1:
            before.append((times[end - 1] - times[0]) / (end - 1))
        if len(times) > end:
            after.append((times[-1] - times[end - 1]) / (len(times) - end))
    return {
        "tpot_to_stop_ms": float(np.mean(before)) if before else None,
        "tpot_past_stop_ms": float(np.mean(after)) if after else None,
    }
