"""Logits to probabilities to a token. The same functions serve target and draft, baseline and speculation."""

from __future__ import annotations

import math

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.streams import uniforms
from specdec_lib.kernels import vocabulary

NUCLEUS_CANDIDATES = 1024  # the most likely tokens, among which top-p usually ends


def probabilities(logits: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Turn logits `[..., V]` into the distribution that `sampling` describes, `[..., V]`.

    Temperature comes first, then top-k, then top-p. Greedy is an exact one-hot. The result is float32 (float64 for
    float64 logits); `logits` is left as it was. Logits of -inf get probability 0. A NaN among the logits of a row makes
    all of the row NaN, so that `DecodeState` can notice it without a synchronisation of its own.
    """
    if (sampling.top_k, sampling.top_p) == (0, 1) and vocabulary.serves(logits):
        return vocabulary.probabilities(logits, sampling.temperature)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.temperature == 0:
        best, token = logits.max(dim=-1, keepdim=True)
        nothing = best - best  # 0, or NaN
        return nothing.expand_as(logits).clone().scatter_(-1, token, nothing + 1)
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

    A CPU takes milliseconds to sort a whole vocabulary, and rarely needs to. Which way is taken changes no result, so
    that a row does not depend on the rows beside it.
    """
    if probs.device.type == "cpu" and probs.shape[-1] > NUCLEUS_CANDIDATES:
        likeliest, tokens = probs.topk(NUCLEUS_CANDIDATES, dim=-1)
        complete = likeliest * (likeliest > likeliest[..., -1:])  # of the last one's equals some may be missing
        if (complete.sum(dim=-1) > top_p + 1e-4).all():
            tokens = tokens.sort(dim=-1).values
            ordered, order = probs.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
            return ordered, tokens.gather(-1, order)
    return probs.sort(dim=-1, descending=True, stable=True)


def choose(probs: torch.Tensor, sampling: SamplingConfig, generator: torch.Generator) -> torch.Tensor:
    """The next token `[...]` from what `probabilities` made of logits `[..., V]`; greedy needs no random numbers."""
    if sampling.temperature > 0:
        return draw(probs, generator)
    if vocabulary.serves(probs):  # of a one-hot any number finds the one, faster than argmax does
        return vocabulary.draw(probs, probs.new_zeros(probs.shape[:-1], dtype=torch.float64))
    return probs.argmax(dim=-1)


def draw(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one token from each distribution `[..., V]`, which need not be normalised; returns int64 `[...]`.

    Inverts the cumulative distribution in float64, with one random number a row. Unlike `torch.multinomial` it neither
    waits for the device nor stops it on a NaN. A token of probability 0 is never drawn.
    """
    numbers = uniforms(probs, math.prod(probs.shape[1:-1]), generator).reshape(probs.shape[:-1])
    return vocabulary.draw(probs, numbers) if vocabulary.serves(probs) else invert(probs, numbers)


def invert(probs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative distribution of `probs` `[..., V]` passes `numbers` `[...]`, int64 `[...]`."""
    cumulative = probs.double().cumsum(dim=-1)
    total = cumulative[..., -1:]
    point = (numbers[..., None] * total).minimum(total.nextafter(torch.zeros_like(total)))  # below even if rounded up
    return torch.searchsorted(cumulative, point, right=True).clamp(max=probs.shape[-1] - 1)[..., 0]
