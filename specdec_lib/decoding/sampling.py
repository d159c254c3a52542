"""Logits to probabilities to a token. The same functions serve target and draft, baseline and speculation."""

from __future__ import annotations

import torch

from specdec_lib.config import SamplingConfig

NUCLEUS_CANDIDATES = 1024  # the most likely tokens, among which top-p usually ends


def probabilities(logits: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Turn logits `[..., V]` into the distribution that `sampling` describes, `[..., V]`.

    Temperature comes first, then top-k, then top-p. Greedy is an exact one-hot. The result is float32 (float64 for
    float64 logits); `logits` is left as it was. Logits of -inf get probability 0. A NaN among the logits of a row makes
    all of the row NaN, so that the end of the step can notice it without a synchronisation of its own.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.temperature == 0:
        best, token = logits.max(dim=-1, keepdim=True)
        zero = best - best  # NaN if the best is
        return zero.expand_as(logits).clone().scatter_(-1, token, zero + 1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probs = torch.softmax(logits, dim=-1)
    return probs if sampling.top_p == 1 else _nucleus(probs, sampling.top_p)


def _nucleus(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches `top_p`; the most likely always stays."""
    ordered, order = _most_likely(probs, top_p)
    cumulative = ordered.cumsum(dim=-1)
    kept = cumulative - ordered < top_p
    mass = (cumulative * kept).amax(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter_(-1, order, ordered * kept / mass)


def _most_likely(probs: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities in falling order with their tokens, of equal ones the lowest token first; enough to hold `top_p`.

    A CPU takes milliseconds to sort a whole vocabulary, and rarely needs to. Both branches give the same result, so
    that a row does not depend on the other rows of its batch.
    """
    if probs.device.type == "cpu" and probs.shape[-1] > NUCLEUS_CANDIDATES:
        likeliest, tokens = probs.topk(NUCLEUS_CANDIDATES, dim=-1)
        complete = likeliest * (likeliest > likeliest[..., -1:])  # of the last one's equals some may be missing
        if (complete.sum(dim=-1) > top_p + 1e-4).all():
            tokens = tokens.sort(dim=-1).values
            ordered, order = probs.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
            return ordered, tokens.gather(-1, order)
    return probs.sort(dim=-1, descending=True, stable=True)


def invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative distribution of `weights` `[..., V]` passes `uniforms` `[...]`; int64 `[...]`.

    Weights need not be normalised. The sum is in float64. Unlike `torch.multinomial` it neither waits for the device
    nor stops it on a NaN. A token of weight 0 is never drawn.
    """
    cumulative = weights.double().cumsum(dim=-1)
    total = cumulative[..., -1:]
    point = (uniforms[..., None] * total).minimum(total.nextafter(torch.zeros_like(total)))  # below even if rounded up
    return torch.searchsorted(cumulative, point, right=True).clamp(max=weights.shape[-1] - 1)[..., 0]


class RandomOps:
    """The two things that are ever done with a uniform number: decide by a chance, and draw from a distribution.

    A verification rule calls these and nothing else, so that the enumeration can see where a decision changes.
    """

    def accept(self, uniforms: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """True with probability `chance`, which may exceed 1; both of one shape, the number float64."""
        return uniforms < chance

    def invert(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """One token from each of `weights` `[..., V]` with `uniforms` `[...]`; int64 `[...]`."""
        return invert(weights, uniforms)
