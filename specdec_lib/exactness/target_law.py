"""The exact law of the next tokens, from the target alone: what sampled and enumerated output is compared with.

Of a real vocabulary a law follows the most likely tokens after each text by name. All others are told apart only by the
group of `GROUPS` that their id falls into, and end their sequence.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.sampling import probabilities
from specdec_lib.exactness.certificate import GROUPS
from specdec_lib.models.runner import LanguageModel

LAW_ROWS = 96  # continuations in one pass of a real vocabulary

Law = dict[tuple[int, ...], float]  # a sequence of tokens to its probability; -1 to -`GROUPS` stand for groups


def total_variation(one: Law, other: Law) -> float:
    """Half the sum of absolute differences of two laws."""
    return sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in one.keys() | other.keys()) / 2


def target_law(
    target: LanguageModel, prompt: torch.Tensor, sampling: SamplingConfig, num_tokens: int, width: int = 0
) -> Law:
    """The exact law of the next `num_tokens` tokens, by running the continuations that `sampling` leaves possible.

    Every pass starts from an empty cache and runs the layers as they are written, not as `torch.compile` made them. So
    nothing is shared with the decoding that is tested. In bfloat16 the kernels stay: the law is that of their rounding.

    Args:
        width: follow only that many of the most likely tokens at each position; 0 follows all. The cost grows as
            (tokens followed) ** (num_tokens - 1).
    """
    return law_of(lambda texts: _next_token_probs(target, texts, sampling), prompt, num_tokens, width)


def law_of(
    next_token_probs: Callable[[torch.Tensor], torch.Tensor], prompt: torch.Tensor, num_tokens: int, width: int = 0
) -> Law:
    """As `target_law`, of what gives the probabilities `[n, V]` of the token after each of n texts `[n, length]`."""
    law: Law = {(): 1.0}
    for _ in range(num_tokens):
        opened = [prefix for prefix in law if not ends_in_group(prefix)]
        texts = torch.stack([torch.cat([prompt, torch.tensor(prefix, dtype=torch.int64)]) for prefix in opened])
        longer = {prefix: mass for prefix, mass in law.items() if ends_in_group(prefix)}
        for prefix, row in zip(opened, next_token_probs(texts), strict=True):
            possible = int((row > 0).sum())
            listed = row.topk(min(width or possible, possible))
            for token, mass in zip(listed.indices.tolist(), listed.values.tolist(), strict=True):
                longer[(*prefix, token)] = law[prefix] * mass
            others = _group_masses(row.index_fill(0, listed.indices, 0.0))
            longer |= {(*prefix, group): law[prefix] * mass for group, mass in others.items() if mass > 0}
        law = longer
    return law


def ends_in_group(outcome: tuple[int, ...]) -> bool:
    """Whether the sequence ended with a token that the law does not follow."""
    return bool(outcome) and outcome[-1] < 0


def _group_masses(probs: torch.Tensor) -> dict[int, float]:  # [V]
    masses = torch.zeros(GROUPS, dtype=probs.dtype).index_add_(0, -1 - _groups(len(probs)), probs)
    return {-1 - index: mass for index, mass in enumerate(masses.tolist())}


@functools.cache
def _groups(vocab_size: int) -> torch.Tensor:  # [V]
    return torch.tensor([group_of(token) for token in range(vocab_size)])


def group_of(token: int) -> int:
    """The group of a token that is not followed, -`GROUPS` to -1: fixed, as good as random (MurmurHash3's mixer)."""
    mixed = token ^ token >> 16
    for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):
        mixed = mixed * factor & 0xFFFFFFFF
        mixed ^= mixed >> shift
    return -1 - mixed % GROUPS


@torch.inference_mode()
def _next_token_probs(target: LanguageModel, texts: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    rows = []
    with target.uncompiled():
        for part in texts.split(LAW_ROWS):
            step = target.forward(part.to(target.device), target.new_cache(*part.shape))
            rows.append(probabilities(target.logits(step.hidden[:, -1]), sampling).double().cpu())
    return torch.cat(rows)


def count_outcomes(sequences: Iterable[Sequence[int]], law: Law) -> Counter[tuple[int, ...]]:
    """Count sequences as the outcomes of `law`: a token that it does not follow becomes its group, and ends them."""
    followed = {outcome[:length] for outcome in law for length in range(len(outcome) + 1)}
    counts: Counter[tuple[int, ...]] = Counter()
    for sequence, times in Counter(map(tuple, sequences)).items():
        length = next((i for i in range(len(sequence)) if sequence[: i + 1] not in followed), len(sequence))
        counts[(*sequence[:length], *map(group_of, sequence[length : length + 1]))] += times
    return counts
