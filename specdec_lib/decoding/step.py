"""A step of decoding: of the baseline one target pass for a token, of speculation propose -> verify -> append.

Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), Algorithm 1, for a batch in which every row advances by its own
number of tokens. A step is nothing but operators on tensors that stay where they are, so that it can be captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from specdec_lib.config import PREFILL_CHUNK
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.proposer import Proposal, Proposer, trimmed, widened
from specdec_lib.decoding.proposers.two_chains import Chains
from specdec_lib.decoding.verification import Verification
from specdec_lib.methods import VerificationRule
from specdec_lib.models.cache import Fork, RaggedCache, RaggedStaticCache

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
        self.call, self.proposer, self.rule, self.policy = call, proposer, rule, call.length
        self.verify = call.ops.verification(rule)

    def start(self) -> None:
        if start := getattr(self.rule.load(), "start", None):
            start(self.call)
        rows = self.call.rows
        self.call.length = self.policy.start(self.call)
        self.drafting = self.proposer.start(self.call)
        self.cache = prefill(self.call, lambda *chunk: self.drafting.read_prompt(rows, *chunk))

    def __call__(self) -> None:
        call, rows = self.call, self.call.rows
        draft_tokens, draft_probs = self.propose()  # [B, m], [B, m, V]
        self.cache.set_lengths(rows.lengths - 1, rows.max_length - 1)  # roll back what was rejected
        passed = call.target.forward(torch.cat([rows.last_token(), draft_tokens], dim=1), self.cache)
        target_probs = call.ops.probabilities(call.target.logits(passed.hidden))  # [B, m+1, V]
        numbers = numbers_of_draft(call.uniforms.next(), draft_tokens.shape[1])
        verification = self.verify(target_probs, draft_probs, draft_tokens, numbers)
        rows.features[:, : passed.features.shape[1]].copy_(passed.features)
        call.ops.append(rows, call.counters, draft_tokens, draft_probs, target_probs, verification)

    def propose(self) -> Proposal:
        """Draft gamma tokens for each row, or fewer; where the host may look, no places beyond the longest draft."""
        call, gamma = self.call, self.call.num_draft_tokens
        at_most = call.length.at_most(call.rows)
        if at_most is None:
            tokens, probs = self.drafting.propose(call.rows, gamma, call.uniforms.next())
        else:  # one at least, as a draft reads what was emitted when it proposes
            longest = max(int(at_most.max()), 1) if call.host_may_branch else gamma
            tokens, probs = self.drafting.propose(call.rows, longest, call.uniforms.next())
            beyond = torch.arange(tokens.shape[1], device=tokens.device) >= at_most[:, None]
            if not call.host_may_branch or beyond.any():
                probs = probs.masked_fill(beyond[:, :, None], 0)
        return as_wide_as_needed(call, (tokens, probs))


class TwoChainsStep(SpeculativeStep):
    """The same with two chains of draft tokens, which differ from their first token on."""

    drafting: Chains
    cache: RaggedStaticCache

    def __call__(self) -> None:
        call, rows, gamma = self.call, self.call.rows, self.call.num_draft_tokens
        tokens, probs = self.drafting.propose(rows, gamma, call.uniforms.next())  # [B, 2 gamma], [B, 2 gamma, V]
        self.cache.set_lengths(rows.lengths - 1, rows.max_length - 1)
        with self.cache.forked(Fork(rows.lengths, gamma)):
            passed = call.target.forward(torch.cat([rows.last_token(), tokens], dim=1), self.cache)
            target_probs = call.ops.probabilities(call.target.logits(passed.hidden))  # [B, 2 gamma + 1, V]
            numbers = call.uniforms.next()
            chain = self.drafting.choose_chain(target_probs, probs, tokens, numbers[:, -1:], call.ops)
            self.cache.keep_chain(chain.second)
        verification = self.verify(chain.target_probs, chain.draft_probs, chain.tokens, numbers[:, : gamma + 1])
        rows.features[:, : gamma + 1].copy_(features_of_chain(passed.features, chain.second))
        call.ops.append(rows, call.counters, chain.tokens, chain.draft_probs, chain.target_probs, verification)
        call.counters.count_other_chain(rows)


def features_of_chain(features: torch.Tensor, second: torch.Tensor) -> torch.Tensor:  # [B, 1 + 2 gamma, F], [B]
    """Those of the token before the chains and of one chain, `[B, 1 + gamma, F]`."""
    gamma = features.shape[1] // 2
    chain = torch.where(second[:, None, None], features[:, gamma + 1 :], features[:, 1 : gamma + 1])
    return torch.cat([features[:, :1], chain], dim=1)


def prefill(call: Call, read_prompt: ReadPrompt = lambda start, end, features: None) -> RaggedCache:
    """Read the prompts in chunks and emit the first token of every row; returns the target's cache.

    Args:
        read_prompt: is handed each chunk's start and end, and the target's features there, `[B, end-start, F]`.
    """
    rows, target = call.rows, call.target
    cache, last = call.new_cache(target, "target"), rows.prompt_lengths - 1
    call.cache = cache
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


def as_wide_as_needed(call: Call, proposal: Proposal) -> Proposal:
    """The places at which some row drafts, where the host may look for them; else gamma places."""
    return trimmed(proposal) if call.host_may_branch else widened(proposal, call.num_draft_tokens)


def numbers_of_draft(uniforms: torch.Tensor, num_drafted: int) -> torch.Tensor:  # [B, gamma+1] -> [B, m+1]
    """The numbers that verify m drafted tokens. A place has its number, and the next token the last one, for every m.

    So a row's tokens do not depend on how long the drafts of the other rows are.
    """
    whole = uniforms.shape[1] == num_drafted + 1
    return uniforms if whole else torch.cat([uniforms[:, :num_drafted], uniforms[:, -1:]], dim=1)


def emit(call: Call, probs: torch.Tensor) -> None:
    """Append to each unfinished row a token drawn from `probs` `[B, 1, V]`."""
    rows, uniforms = call.rows, call.uniforms.next()
    token = call.ops.choose(probs, uniforms[:, :1])  # [B, 1]
    no_tokens, no_probs = rows.tokens[:, :0], probs[:, :0]
    verification = Verification(torch.zeros_like(rows.lengths), token[:, 0])
    call.ops.append(rows, None, no_tokens, no_probs, probs, verification)
