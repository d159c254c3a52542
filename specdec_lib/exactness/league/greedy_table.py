"""Greedy texts of every way: equal to the engine's own baseline and to transformers', or different at near-ties."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from specdec_lib.exactness.greedy import replay, rounding_bound
from specdec_lib.exactness.league.measure import greedy_file, read_result
from specdec_lib.exactness.league.subject import Subject, Way
from specdec_lib.exactness.league.tiny_models import LETTERS, greedy_prompts, load_tiny

REFERENCE = "transformers"
TOGETHER = 5  # positions in one pass, of gamma 4
Texts = list[list[int]]


def greedy_table(subjects: Sequence[Subject], folder: Path) -> pd.DataFrame:
    """A line per way and precision.

    Returns:
        subject, method, rule, setting, dtype, texts; equal_own (texts equal to those of the engine's own baseline),
        equal_transformers, and explained (of those that differ from transformers', how many differ first at a near-tie:
        two logits that the rounding of two implementations may swap); reason where there are no texts.
    """
    reference = next((subject for subject in subjects if subject.name == REFERENCE), None)
    lines: list[dict[str, object]] = []
    for subject in subjects:
        for dtype in subject.dtypes:
            own = _texts(folder, subject, _baseline(subject), dtype)
            theirs = _texts(folder, reference, _baseline(reference), dtype) if reference else None
            lines += [
                _line(folder, subject, way, dtype, own, None if way.own_model else theirs)
                for way in subject.ways
                if way.greedy and not way.untestable and subject.kind == "engine"
            ]
    return pd.DataFrame(lines)


def _baseline(subject: Subject) -> Way | None:
    return next((way for way in subject.ways if way.gammas == (0,)), None)


def _texts(folder: Path, subject: Subject | None, way: Way | None, dtype: str) -> Texts | None:
    if subject is None or way is None:
        return None
    texts: Texts | None = read_result(greedy_file(folder, subject, way, dtype)).get("tokens")
    return texts


def _line(
    folder: Path, subject: Subject, way: Way, dtype: str, own: Texts | None, theirs: Texts | None
) -> dict[str, object]:
    found = read_result(greedy_file(folder, subject, way, dtype))
    texts: Texts | None = found.get("tokens")
    line: dict[str, Any] = {"subject": subject.name, "method": way.method, "rule": way.rule, "setting": way.setting}
    line |= {"dtype": dtype}
    if texts is None:
        return line | {"reason": found.get("reason", "not run yet")}
    line |= {"texts": len(texts), "equal_own": _equal(texts, own), "equal_transformers": _equal(texts, theirs)}
    if theirs:
        line["explained"] = sum(
            _explained(row, one, other, dtype)
            for row, (one, other) in enumerate(zip(texts, theirs, strict=True))
            if one != other
        )
    return line


def _equal(texts: Texts, others: Texts | None) -> int | None:
    return None if others is None else sum(one == other for one, other in zip(texts, others, strict=True))


def _explained(row: int, text: list[int], theirs: list[int], dtype: str) -> bool:
    """Whether the first difference is a near-tie of the target's logits in float32."""
    position = next(i for i, (one, other) in enumerate(zip(text, theirs, strict=True)) if one != other)
    logits = _logits(tuple(map(tuple, [greedy_prompts()[row], theirs])))[position]
    gap = abs(float(logits[theirs[position]] - logits[text[position]]))
    return gap <= 2 * _bound(dtype)  # two implementations, each of which rounds


@functools.cache
def _logits(prompt_and_text: tuple[tuple[int, ...], tuple[int, ...]]) -> torch.Tensor:  # [n, V]
    prompt, text = map(torch.tensor, prompt_and_text)
    return replay(load_tiny("target"), [prompt], [text], [1])[0][0]


@functools.cache
def _bound(dtype: str) -> float:
    """The largest lead, in logits, that rounding to this precision undid on random texts; see `greedy`."""
    prompts = [torch.tensor(prompt) for prompt in greedy_prompts()]
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(len(LETTERS), (24,), generator=generator) for _ in prompts]
    precision = getattr(torch, dtype)
    alone = replay(load_tiny("target"), prompts, texts, [1])[0]
    together = replay(load_tiny("target", precision), prompts, texts, [TOGETHER])[0]
    letters = len(LETTERS)  # special tokens are never near
    return rounding_bound(alone[..., :letters], together[..., :letters], precision)
