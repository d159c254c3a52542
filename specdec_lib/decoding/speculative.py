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
    check_prompts(target, prompts, max_new_tokens, stop_token_ids)
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
    return decode_result(step.state)


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
        self.position = torch.arange(num_draft_tokens, device=target.device)

    def start(self) -> None:
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
        if not state.all_have_room(self.num_draft_tokens):
            draft_probs = draft_probs * state.of_use(self.position)[:, :, None]  # undraft the rest

        # What the last step wrote too much is rolled back.
        self.cache.set_lengths(state.lengths - 1, state.max_length - 1)
        step = self.target.forward(torch.cat([state.last_token(), draft_tokens], dim=1), self.cache)
        target_probs = probabilities(self.target.logits(step.hidden), self.sampling)  # [B, gamma+1, V]
        self.streams.next_passage()
        verdict = self.verifier(target_probs, draft_probs, draft_tokens, self.streams)

        state.features.copy_(step.features)
        state.commit(draft_tokens, chances, target_probs, verdict)


def _verifier(verification: str | Verifier) -> Verifier:
    if callable(verification):
        return verification
    if verification not in VERIFICATIONS:
        raise ValueError(f"unknown verification {verification!r}: choose one of {', '.join(VERIFICATIONS)}")
    return VERIFICATIONS[verification]
