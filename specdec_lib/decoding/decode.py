"""The two public calls: decode a batch without speculation, and with it. Everything but the step is shared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.captured_loop import CapturedStep, KeptSteps, drafts_of, kept_steps
from specdec_lib.decoding.checks import Prompts, checked_prompts, checked_row_numbers, is_whole
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.draft_length import FIXED, DraftLength
from specdec_lib.decoding.loop import run_steps
from specdec_lib.decoding.ops import PlainOps, choose_ops
from specdec_lib.decoding.progress import Progress
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.step import BaselineStep, SpeculativeStep, Step, TwoChainsStep
from specdec_lib.decoding.uniforms import Uniforms, draws_of_call, table_of_call
from specdec_lib.decoding.verification import Verify
from specdec_lib.methods import RULES, VerificationRule, make_draft_length
from specdec_lib.models.cache import RaggedCache
from specdec_lib.models.runner import LanguageModel


@torch.inference_mode()
def autoregressive_decode(
    target: LanguageModel,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator | None = None,
    stop_token_ids: Sequence[int] = (),
    row_numbers: Sequence[int] | None = None,
    uniforms: torch.Tensor | None = None,
    ops: PlainOps | None = None,
) -> DecodeResult:
    """Decode a ragged batch one token at a time.

    Args:
        prompts: the token ids of B rows: 1-D int64 tensors or lists of ints, of any lengths.
        max_new_tokens: tokens per row; fewer only where a stop token ends the row.
        generator: the seed of the call is drawn from it; may be left out at temperature 0.
        stop_token_ids: a row ends with the first of these; the stop token itself is returned.
        row_numbers: the number of each row, by default its place in the batch. A row's random numbers depend on the
            seed and its number alone, so that it can be decoded again in another batch.
        uniforms: the table of random numbers `[B, draws, 1]` float64 itself, in place of a generator.
        ops: what computes the small operations; chosen by itself unless given.

    Raises:
        ValueError: a prompt that cannot be decoded (empty, too long, unknown token), a missing generator, or NaN
            logits, naming the step.
    """
    batch = checked_prompts(target, prompts, max_new_tokens, stop_token_ids)
    request = _Request(target, batch, max_new_tokens, sampling, stop_token_ids, 0, ops or choose_ops(target, sampling))
    progress = Progress(max(map(len, batch)), max_new_tokens)
    table = request.table(generator, row_numbers, uniforms)
    return _run(request, table, progress, BaselineStep, "autoregressive", frozenset())


@torch.inference_mode()
def speculative_decode(
    target: LanguageModel,
    proposer: Proposer,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    num_draft_tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator | None = None,
    stop_token_ids: Sequence[int] = (),
    verification: str | Verify = "token",
    draft_length: str | DraftLength = "fixed",
    row_numbers: Sequence[int] | None = None,
    uniforms: torch.Tensor | None = None,
    ops: PlainOps | None = None,
) -> DecodeResult:
    """Decode a ragged batch with draft tokens; the output follows the target's distribution exactly.

    Leviathan, Kalman, Matias 2022 (arXiv 2211.17192). Arguments as of `autoregressive_decode`, and:

    Args:
        proposer: where draft tokens come from.
        num_draft_tokens: gamma, tokens proposed in each step.
        stop_token_ids: tokens accepted after a stop token are dropped and not counted.
        verification: the name of a rule in `specdec_lib.methods`, "token" for that of Leviathan et al. 2022, or a
            function with the signature of `decoding.verification.verify`.
        draft_length: how many of gamma tokens a row drafts in a step: a policy in `specdec_lib.methods`, with its
            number, such as "confidence:0.4"; "fixed" for all; or a `DraftLength`.
        uniforms: `[B, draws, gamma+1]`, of two chains 2 gamma + 1 numbers a draw; draw 0 is for the first token, then
            each step takes one to propose and one to verify.

    Raises:
        ValueError: gamma below 1, an unknown verification rule or draft length, and whatever `autoregressive_decode` or
            the proposer refuses.
    """
    if not is_whole(num_draft_tokens) or num_draft_tokens < 1:
        raise ValueError(f"num_draft_tokens is {num_draft_tokens!r}: give at least 1, or use autoregressive_decode")
    rule = find_rule(verification)
    length = make_draft_length(draft_length) if isinstance(draft_length, str) else draft_length
    batch = checked_prompts(target, prompts, max_new_tokens, stop_token_ids)
    gamma = length.of_call(len(batch), num_draft_tokens)
    ops = ops or choose_ops(target, sampling)
    request = _Request(target, batch, max_new_tokens, sampling, stop_token_ids, gamma, ops, length, proposer.chains)
    progress = Progress(max(map(len, batch)), max_new_tokens)
    table = request.table(generator, row_numbers, uniforms)
    if gamma == 0:
        return _run(request, table, progress, BaselineStep, "autoregressive", frozenset())
    can_capture = proposer.capturable and _is_capturable(verification) and length.capturable
    key = (proposer, verification) if can_capture else None
    kind = TwoChainsStep if proposer.chains == 2 else SpeculativeStep
    return _run(request, table, progress, lambda call: kind(call, proposer, rule), key, drafts_of(proposer))


def find_rule(verification: str | Verify) -> VerificationRule:
    """The rule of that name, or a function as a rule.

    Raises:
        ValueError: no such rule; the known ones are named.
    """
    if callable(verification):
        return VerificationRule("custom", "custom", lambda: verification)
    if verification not in RULES:
        raise ValueError(f"unknown verification {verification!r}: choose one of {', '.join(RULES)}")
    return RULES[verification]


def _is_capturable(verification: str | Verify) -> bool:
    """Rules of the registry are operators on tensors; a function says so with an attribute `capturable`."""
    return isinstance(verification, str) or getattr(verification, "capturable", False)


@dataclass(frozen=True)
class _Request:
    """What a call asks for, checked."""

    target: LanguageModel
    prompts: Sequence[torch.Tensor]
    max_new_tokens: int
    sampling: SamplingConfig
    stop_token_ids: Sequence[int]
    num_draft_tokens: int
    ops: PlainOps
    length: DraftLength = FIXED
    chains: int = 1

    @property
    def width(self) -> int:
        """The tokens of a pass in a row, of which a step emits no more, and the random numbers of a draw."""
        return self.chains * self.num_draft_tokens + 1

    @property
    def positions(self) -> int:
        """Positions that a row may reach."""
        return max(map(len, self.prompts)) + self.max_new_tokens + self.width

    def table(
        self, generator: torch.Generator | None, row_numbers: Sequence[int] | None, given: torch.Tensor | None
    ) -> torch.Tensor:  # [B, draws, width], on the target's device
        """The random numbers of the call."""
        if given is None:
            numbers, draws = checked_row_numbers(row_numbers, len(self.prompts)), draws_of_call(self.max_new_tokens)
            greedy = self.sampling.temperature == 0
            given = table_of_call(generator, numbers, draws, self.width, greedy=greedy)
        return given[:, :, : self.width].to(self.target.device)

    def new_call(self, capacity: int, uniforms: Uniforms, caches: dict[object, RaggedCache] | None = None) -> Call:
        """Rows and counters for calls like this one."""
        rows = Rows(
            self.target,
            batch_size=len(self.prompts),
            capacity=capacity,
            width=self.width,
            num_stops=len(self.stop_token_ids),
        )
        counters = Counters(self.num_draft_tokens, self.target.device)
        shared = rows, counters, uniforms, caches, self.length
        return Call(self.target, self.sampling, self.num_draft_tokens, self.ops, *shared)


def _run(
    request: _Request,
    table: torch.Tensor,
    progress: Progress,
    make_step: Callable[[Call], Step],
    capture_key: Hashable,
    drafts: frozenset,
) -> DecodeResult:
    """Decode one by one, or by replays where this target's steps are captured and `capture_key` is not None."""
    kept = None if capture_key is None else kept_steps(request.target)
    if kept is None:
        call = request.new_call(request.positions, Uniforms(table))
        call.rows.fill(request.prompts, request.max_new_tokens, request.stop_token_ids)
        run_steps(make_step(call), progress)
        return _result(call, progress)
    captured = _kept_step(kept, request, make_step, capture_key, drafts)
    call = captured.step.call
    call.rows.fill(request.prompts, request.max_new_tokens, request.stop_token_ids)
    call.counters.counts.zero_()
    captured.uniforms.refill(table)
    try:
        captured.run(kept, progress)
    except BaseException:
        request.target.kept = None  # whatever is in these caches now, later calls must not see it
        raise
    return _result(call, progress)


def _kept_step(
    kept: KeptSteps,
    request: _Request,
    make_step: Callable[[Call], Step],
    capture_key: Hashable,
    drafts: frozenset,
) -> CapturedStep:
    """The step that earlier calls like this one left, or a new one."""
    kept.fit(len(request.prompts), request.positions, drafts)
    key = capture_key, request.num_draft_tokens, request.sampling, request.ops, len(request.stop_token_ids)
    if key not in kept.steps:
        uniforms = kept.uniforms(request.width, request.target.device)
        call = request.new_call(kept.capacity, uniforms, kept.caches)
        kept.steps[key] = CapturedStep(make_step(call), uniforms)
    return kept.steps[key]


def _result(call: Call, progress: Progress) -> DecodeResult:
    """The tokens, times and counts of a finished call."""
    steps, drafted, tested_by_position, accepted_by_position = call.counters.read()
    return DecodeResult(
        tokens=call.rows.output(),
        ttft_s=progress.times[0],
        step_s=[after - before for before, after in zip(progress.times[:-1], progress.times[1:], strict=True)],
        step_tokens=progress.emitted[1:],
        step_tested=progress.tested[1:],
        steps=steps,
        drafted=drafted,
        tested_by_position=tested_by_position,
        accepted_by_position=accepted_by_position,
        capture_s=progress.capture_s,
        replayed=progress.replayed,
    )
