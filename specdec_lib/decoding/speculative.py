"""Speculative decoding: prefill, then propose -> verify -> commit until every row is done.

Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), Algorithm 1, for a batch in which every row advances by its own
number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import decode_result, prefill
from specdec_lib.decoding.proposers import Proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.sampling import probabilities
from specdec_lib.decoding.state import DecodeState, check_generator, check_prompts
from specdec_lib.decoding.step_loop import capture_key, run_steps
from specdec_lib.decoding.streams import RowStreams
from specdec_lib.decoding.verification import Verification, verify
from specdec_lib.models.runner import LanguageModel

# A verifier that counts steps, on the device, has a `restart(state)` that is called when a call begins.
Verifier = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Generator], Verification]
VERIFICATIONS: dict[str, Verifier] = {"token": verify}


@torch.inference_mode()
def speculative_decode(
    target: LanguageModel,
    proposer: Proposer,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    num_draft_tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator,
    stop_token_ids: Sequence[int] = (),
    verification: str | Verifier = "token",
) -> DecodeResult:
    """Decode a ragged batch with draft tokens; the output follows the target's distribution exactly.

    Args:
        proposer: where draft tokens come from.
        prompts: B one-dimensional int64 tensors of token ids.
        max_new_tokens: tokens per row; fewer only where a stop token ends the row.
        num_draft_tokens: gamma, tokens proposed in each step.
        generator: on the target's device; the only source of randomness, with a stream for each row, as in
            `autoregressive_decode`.
        stop_token_ids: a row ends with the first of these; tokens accepted behind it are dropped and not counted.
        verification: "token", the rule of Leviathan et al. 2022, or a function with the signature of `verify`.

    Raises:
        ValueError: gamma below 1, an unknown verification, a prompt that cannot be decoded (empty, too long for either
            model, unknown token), or NaN logits, naming the step.
    """
    if num_draft_tokens < 1:
        raise ValueError(f"num_draft_tokens is {num_draft_tokens}: give at least 1, or use autoregressive_decode")
    verifier = _verifier(verification)
    check_generator(generator, target)
    check_prompts(target, prompts, max_new_tokens)
    keys = capture_key(proposer), capture_key(verifier)
    step = run_steps(
        lambda state, streams: SpeculativeStep(target, proposer, verifier, state, num_draft_tokens, sampling, streams),
        target,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        slack=num_draft_tokens + 1,
        generator=generator,
        capture_key=None if None in keys else ("speculative", num_draft_tokens, sampling, *keys),
    )
    result = decode_result(step.state)
    step.counters.write_into(result)
    return result


class SpeculativeStep:
    """Propose, verify, commit: up to gamma + 1 tokens for every row, for one target pass."""

    def __init__(
        self,
        target: LanguageModel,
        proposer: Proposer,
        verifier: Verifier,
        state: DecodeState,
        num_draft_tokens: int,
        sampling: SamplingConfig,
        streams: RowStreams,
    ):
        self.target, self.proposer, self.verifier, self.state = target, proposer, verifier, state
        self.num_draft_tokens, self.sampling, self.streams = num_draft_tokens, sampling, streams
        self.counters = _Counters(num_draft_tokens, target.device)

    def start(self) -> None:
        self.counters.restart()
        if restart := getattr(self.verifier, "restart", None):
            restart(self.state)
        self.proposer.start(self.state)
        self.cache = prefill(
            self.target,
            self.state,
            self.sampling,
            self.streams,
            also=lambda *chunk: self.proposer.read_prompt(self.state, *chunk),
        )

    def __call__(self) -> None:
        state = self.state
        self.streams.next_passage()
        draft_tokens, draft_probs = self.proposer.propose(state, self.num_draft_tokens, self.sampling, self.streams)
        chances = draft_probs.gather(2, draft_tokens[:, :, None])[:, :, 0]  # [B, gamma]
        state.check(chances)
        room = torch.arange(self.num_draft_tokens, device=chances.device) < state.remaining[:, None] - 1
        if not state.all_have_room(self.num_draft_tokens):  # a step emits one token more than it accepts
            draft_probs = draft_probs * room[:, :, None]  # undraft the rest

        # What the last step wrote too much is rolled back.
        self.cache.set_lengths(state.lengths - 1, state.max_length - 1)
        step = self.target.forward(torch.cat([state.last_tokens(1), draft_tokens], dim=1), self.cache)
        target_probs = probabilities(self.target.logits(step.hidden), self.sampling)  # [B, gamma+1, V]
        state.check(target_probs[:, :, 0])
        self.streams.next_passage()
        verdict = self.verifier(target_probs, draft_probs, draft_tokens, self.streams)

        state.features.copy_(step.features)
        state.emit(*_emission(draft_tokens, verdict))
        self.counters.add(chances > 0, room, verdict, state.num_emitted)


def _verifier(verification: str | Verifier) -> Verifier:
    if callable(verification):
        return verification
    if verification not in VERIFICATIONS:
        raise ValueError(f"unknown verification {verification!r}: choose one of {', '.join(VERIFICATIONS)}")
    return VERIFICATIONS[verification]


def _emission(draft_tokens: torch.Tensor, verdict: Verification) -> tuple[torch.Tensor, torch.Tensor]:
    """The accepted tokens with the resampled or bonus token behind them `[B, gamma+1]`, and how many count `[B]`."""
    behind = verdict.next_token[:, None]
    tokens = torch.cat([draft_tokens, behind], dim=1).scatter_(1, verdict.num_accepted[:, None], behind)
    return tokens, verdict.num_accepted + 1


class _Counters:
    """Acceptance counted on the device, read once at the end."""

    def __init__(self, num_draft_tokens: int, device: torch.device):
        self.position = torch.arange(num_draft_tokens, device=device)
        # Steps; tokens drafted, tested and accepted, each by position.
        self.counts = torch.zeros(1 + 3 * num_draft_tokens, dtype=torch.int64, device=device)

    def restart(self) -> None:
        self.counts.zero_()

    def add(
        self,
        proposed: torch.Tensor,  # [B, gamma], drafted
        room: torch.Tensor,  # [B, gamma], where a draft token can be of use
        verdict: Verification,
        num_emitted: torch.Tensor,  # [B], 0 for a row that was done before; a stop token ends what counts
    ) -> None:
        active = (num_emitted > 0)[:, None]
        tested = proposed & room & (self.position < (verdict.num_accepted + 1).minimum(num_emitted)[:, None])
        accepted = self.position < verdict.num_accepted.minimum(num_emitted)[:, None]
        self.counts += torch.cat([active, proposed & active, tested, accepted], dim=1).sum(dim=0)

    def write_into(self, result: DecodeResult) -> None:
        result.steps, *counts = self.counts.tolist()
        gamma = len(self.position)
        result.drafted = sum(counts[:gamma])
        result.tested_by_position, result.accepted_by_position = counts[gamma : 2 * gamma], counts[2 * gamma :]
