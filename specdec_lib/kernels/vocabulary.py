"""Distributions over whole vocabularies with the C++ kernels: a pass or two instead of a dozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from specdec_lib.kernels.build import why_no_kernels

SMALLEST = 1024  # tokens: below, PyTorch's passes cost nothing


def available(device: torch.device, vocab_size: int) -> bool:
    """Whether the kernels are there for distributions over so many tokens."""
    return vocab_size >= SMALLEST and device.type == "cpu" and why_no_kernels() is None


@contextmanager
def serving_from(size: int) -> Iterator[None]:
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
