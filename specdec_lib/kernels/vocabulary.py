"""Distributions over whole vocabularies with the C++ kernels: a pass or two instead of a dozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from specdec_lib.kernels.build import why_no_kernels

SMALLEST = 1024  # tokens: below, PyTorch's passes cost nothing


def available(device: torch.device, vocab_size: int) -> bool:
    """Whether the kernels are there for distributions over so many tokens."""
    return vocab_size >= SMALLEST and device.type == "cpu" and why_no_kernels() is None


@contextmanager
def even_of(size: int) -> Iterator[None]:
    """For as long as this lasts, serve vocabularies from `size` tokens on, so that toys are decoded by the kernels."""
    global SMALLEST  # noqa: PLW0603
    usual, SMALLEST = SMALLEST, size
    try:
        yield
    finally:
        SMALLEST = usual


def serves(*weights: torch.Tensor) -> bool:
    """Whether the kernels can draw from `weights` `[..., V]`."""
    return all(w.dtype == torch.float32 for w in weights) and available(weights[0].device, weights[0].shape[-1])


def draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token from each of `weights` `[..., V]` float32 by inversion of `uniforms` `[...]` float64, int64 `[...]`."""
    return torch.ops.specdec_lib.draw(weights.contiguous(), uniforms.contiguous())


def lookup(
    tokens: torch.Tensor,  # [B, capacity]
    lengths: torch.Tensor,  # [B]
    longest: int,
    shortest: int,
    num_draft_tokens: int,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # [B, gamma], [B, gamma, V]
    """What followed the last `longest` to `shortest` tokens where they stood before, and one-hots of it."""
    return torch.ops.specdec_lib.lookup(tokens, lengths, longest, shortest, num_draft_tokens, vocab_size)


def commit(
    rows: Sequence[torch.Tensor],  # those of a `DecodeState`, changed in place
    draft_tokens: torch.Tensor,  # [B, gamma]
    chances: torch.Tensor,  # [B, gamma]
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    num_accepted: torch.Tensor,  # [B]
    next_token: torch.Tensor,  # [B]
) -> None:
    """`DecodeState.commit` on `tokens, lengths, ends, done, stops, broken, num_emitted, counts, report`."""
    step = draft_tokens, chances, target_probs, num_accepted.long(), next_token
    torch.ops.specdec_lib.commit(*rows, *(tensor.contiguous() for tensor in step))


def probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(logits / temperature) of `[..., V]`, a one-hot of the largest at temperature 0."""
    return torch.ops.specdec_lib.probabilities(logits.contiguous(), temperature)


def verify(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]
    draft_tokens: torch.Tensor,  # [B, gamma]
    tests: torch.Tensor,  # [B, gamma]
    numbers: torch.Tensor,  # [B]
) -> tuple[torch.Tensor, torch.Tensor]:  # [B], [B]
    """How many draft tokens pass their `tests`, and the token behind them drawn with `numbers`."""
    tensors = target_probs, draft_probs, draft_tokens, tests, numbers
    return torch.ops.specdec_lib.verify(*(tensor.contiguous() for tensor in tensors))
