"""A step of decoding: of the baseline one target pass for a token, of speculation propose -> verify -> append.

Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), Algorithm 1, for a batch in which every row advances by its own
number of tokens. A step is nothing but operators on tensors that stay where they are, so that it can be captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.verification import Verification
from specdec_lib.methods import VerificationRule
from specdec_lib.models.cache import RaggedCache
from specdec_lib.models.runner import PREFILL_CHUNK

ReadPrompt = Callable[[int, int, torch.Tensor], None]


class Step(Protocol):
    """One step of decoding, over the tensors of its call, which it changes in place."""

    call: Call

    def start(self) -> None:
        """Read the prompts and emit the first token of every row."""

    def __call__(self) -> None:
        """Advance every row. Whatever Python does besides operators on tensors is not replayed."""


class BaselineStep:
    """One target pass, and one token for every row."""

    def __init__(self, call: Call):
        self.call = call

    def start(self) -> None:
        self.cache = prefill(self.call)

    def __call__(self) -> None:
        rows, target = self.call.rows, self.call.target
        self.cache.set_lengths(rows.lengths - 1, rows.max_length - 1)
        passed = target.forward(rows.last_token(), self.cache)
        emit(self.call, self.call.ops.probabilities(target.logits(passed.hidden)))


class SpeculativeStep:
    """Propose, verify, append: up to gamma + 1 tokens for every row, for one target pass."""

    def __init__(self, call: Call, proposer: Proposer, rule: VerificationRule):
        self.call, self.proposer, self.rule = call, proposer, rule
        self.verify = call.ops.verification(rule)

    def start(self) -> None:
        if start := getattr(self.rule.load(), "start", None):
            start(self.call)
        rows = self.call.rows
        self.drafting = self.proposer.start(self.call)
        self.cache = prefill(self.call, lambda *chunk: self.drafting.read_prompt(rows, *chunk))

    def __call__(self) -> None:
        call, rows = self.call, self.call.rows
        draft_tokens, draft_probs = self.drafting.propose(rows, call.num_draft_tokens, call.uniforms.next())
        self.cache.set_lengths(rows.lengths - 1, rows.max_length - 1)  # roll back what was rejected
        passed = call.target.forward(torch.cat([rows.last_token(), draft_tokens], dim=1), self.cache)
        target_probs = call.ops.probabilities(call.target.logits(passed.hidden))  # [B, gamma+1, V]
        verification = self.verify(target_probs, draft_probs, draft_tokens, call.uniforms.next())
        rows.features.copy_(passed.features)
        call.ops.append(rows, call.counters, draft_tokens, draft_probs, target_probs, verification)


def prefill(call: Call, read_prompt: ReadPrompt = lambda start, end, features: None) -> RaggedCache:
    """Read the prompts in chunks and emit the first token of every row; returns the target's cache.

    Args:
        read_prompt: is handed each chunk's start and end, and the target's features there, `[B, end-start, F]`.
    """
    rows, target = call.rows, call.target
    cache, last = call.new_cache(target, "target"), rows.prompt_lengths - 1
    hidden = features = torch.empty(0)
    for start in range(0, rows.max_length, PREFILL_CHUNK):
        end = min(start + PREFILL_CHUNK, rows.max_length)
        counts = prompt_tokens_in(call, start, end)
        passed = target.forward(rows.tokens[:, start:end], cache, counts)
        cache.commit(counts, at_most=end - start)
        here = (last - start).clamp(0, end - start - 1)[:, None, None]
        newer = (last >= start)[:, None, None]
        chunk_hidden = passed.hidden.gather(1, here.expand(-1, 1, passed.hidden.shape[-1]))
        chunk_features = passed.features.gather(1, here.expand(-1, 1, passed.features.shape[-1]))
        hidden = chunk_hidden if start == 0 else torch.where(newer, chunk_hidden, hidden)
        features = chunk_features if start == 0 else torch.where(newer, chunk_features, features)
        read_prompt(start, end, passed.features)
    emit(call, call.ops.probabilities(target.logits(hidden)))
    rows.features[:, :1].copy_(features)
    return cache


def prompt_tokens_in(call: Call, start: int, end: int) -> torch.Tensor:  # [B]
    """How many of the positions start..end belong to each row's prompt."""
    return (call.rows.prompt_lengths - start).clamp(0, end - start)


def emit(call: Call, probs: torch.Tensor) -> None:
    """Append to each unfinished row a token drawn from `probs` `[B, 1, V]`."""
    rows, uniforms = call.rows, call.uniforms.next()
    token = call.ops.choose(probs, uniforms[:, :1])  # [B, 1]
    no_tokens, no_probs = rows.tokens[:, :0], probs[:, :0]
    verification = Verification(torch.zeros_like(rows.lengths), token[:, 0])
    call.ops.append(rows, call.counters, no_tokens, no_probs, probs, verification)
