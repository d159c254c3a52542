"""One generation, token by token, as data. Without torch, so that a page can be made of it anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

KINDS = {  # of tokens in a transcript
    "accepted": "accepted draft token",
    "rejected": "rejected draft token, not emitted",
    "resampled": "resampled after a rejection",
    "bonus": "bonus after full acceptance",
    "own": "the target's own, nothing drafted here",
}


class TranscriptToken(NamedTuple):
    """One token: its kind, one of `KINDS`, its text, and its probabilities where they were recorded."""

    kind: str
    text: str
    target_prob: float | None = None
    draft_prob: float | None = None


@dataclass(frozen=True)
class Transcript:
    """One row of a decoding call, step by step.

    Attributes:
        title: what was decoded.
        steps: the tokens of the prefill and of each step; a rejected draft token stands before its replacement.
        seconds: how long the prefill and each step took.
        emitted: how many tokens the prefill and each step emitted.
        baseline_seconds: the same for the baseline's steps, which emit one token each; empty without a baseline.
    """

    title: str
    steps: list[list[TranscriptToken]]
    seconds: list[float]
    emitted: list[int]
    baseline_seconds: list[float]
