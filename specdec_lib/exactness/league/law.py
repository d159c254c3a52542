"""The law that a line is compared with, as chances of each pair of successive tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.sampling import probabilities
from specdec_lib.exactness.joint_law import pairs_at
from specdec_lib.exactness.league.tiny_models import LETTERS, PROMPTS, load_tiny
from specdec_lib.exactness.target_law import Law, law_of, target_law

Logits = Callable[[list[list[int]]], list[list[float]]]
ROWS = 512  # texts in one question to an engine


def laws(model: str, sampling: SamplingConfig, length: int) -> list[Law]:
    """The laws of `length` tokens after each of the `PROMPTS`, of the tiny `model` in float32."""
    return _laws(model, tuple(vars(sampling).values()), length)


@functools.cache
def _laws(model: str, sampling: tuple[float, int, float], length: int) -> list[Law]:
    tiny, chosen = _tiny(model), SamplingConfig(*sampling)
    return [target_law(tiny, torch.tensor(prompt), chosen, length, width=len(LETTERS)) for prompt in PROMPTS]


_tiny = functools.cache(load_tiny)


def laws_by_logits(logits: Logits, sampling: SamplingConfig, length: int) -> list[Law]:
    """The same of a model that an engine has to itself, from the logits that it gives."""

    def next_token_probs(texts: torch.Tensor) -> torch.Tensor:
        rows = [row for part in texts.split(ROWS) for row in logits(part.tolist())]
        return probabilities(torch.tensor(rows), sampling).double()

    return [law_of(next_token_probs, torch.tensor(prompt), length, width=len(LETTERS)) for prompt in PROMPTS]


def pairs(laws_or_counts: Sequence[Law], length: int) -> list[list[dict[str, float]]]:
    """By prompt and position: the weight of each pair, as text for JSON."""
    return [[as_text(pairs_at(each, position)) for position in range(length - 1)] for each in laws_or_counts]


def as_text(law: Law) -> dict[str, float]:
    """A law whose outcomes are texts of ids, so that JSON can hold it."""
    return {" ".join(map(str, outcome)): weight for outcome, weight in law.items()}


def from_text(law: dict[str, float]) -> Law:
    """The opposite of `as_text`."""
    return {tuple(map(int, outcome.split())): weight for outcome, weight in law.items()}
