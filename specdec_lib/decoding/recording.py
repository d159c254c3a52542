"""One generation token by token: which were accepted, which the target drew itself, with what probabilities.

`Recording` listens to a verification rule during a call; `transcript` joins what it heard with the call's tokens and
times. What comes out is data; `report/` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import transformers

from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.sampling import RandomOps
from specdec_lib.decoding.transcript import Transcript, TranscriptToken
from specdec_lib.decoding.verification import RANDOM, Verification, Verify, chance_of, verify

Seen = tuple[int, str, float | None, float | None]  # token id, kind, target probability, draft probability


class RecordedStep(NamedTuple):
    """What one verification saw and decided, for each row; on the device until it is read."""

    draft_tokens: torch.Tensor  # [B, gamma]
    draft_probs: torch.Tensor  # [B, gamma], of the draft tokens; 0: nothing was drafted here
    target_probs: torch.Tensor  # [B, gamma], of the draft tokens
    num_accepted: torch.Tensor  # [B]
    next_token: torch.Tensor  # [B]
    next_draft_prob: torch.Tensor  # [B]
    next_target_prob: torch.Tensor  # [B]


class Recording:
    """A verification rule that decides as another does and remembers each step.

    Give it as `speculative_decode(..., verification=recording)`, a new one for each call.

    Args:
        rule: decides; by default the rule of Leviathan et al. 2022.
    """

    def __init__(self, rule: Verify = verify) -> None:
        self.rule = rule
        self.steps: list[RecordedStep] = []

    def __call__(
        self,
        target_probs: torch.Tensor,  # [B, gamma+1, V]
        draft_probs: torch.Tensor,  # [B, gamma, V]
        draft_tokens: torch.Tensor,  # [B, gamma]
        uniforms: torch.Tensor,  # [B, gamma+1]
        ops: RandomOps = RANDOM,
    ) -> Verification:
        """Verify, and note the probabilities of the tokens that mattered."""
        verdict = self.rule(target_probs, draft_probs, draft_tokens, uniforms, ops)
        row = torch.arange(len(draft_tokens), device=draft_tokens.device)
        padded = torch.nn.functional.pad(draft_probs, (0, 0, 0, 1))  # [B, gamma+1, V]
        self.steps.append(
            RecordedStep(
                draft_tokens.clone(),
                chance_of(draft_tokens, draft_probs),
                chance_of(draft_tokens, target_probs[:, :-1]),
                verdict.num_accepted.clone(),
                verdict.next_token.clone(),
                padded[row, verdict.num_accepted, verdict.next_token],
                target_probs[row, verdict.num_accepted, verdict.next_token],
            )
        )
        return verdict


def transcript(
    result: DecodeResult,
    tokenizer: transformers.PreTrainedTokenizerBase | None,
    recording: Recording,
    baseline: DecodeResult | None = None,
    *,
    row: int = 0,
    title: str = "",
) -> Transcript:
    """What happened in one row of a call.

    Args:
        tokenizer: None for toys: token ids are shown.
        recording: the rule of that call.
        baseline: an autoregressive call on the same prompt, for the timeline.

    Raises:
        ValueError: there is no such row, or the recording belongs to another call.
    """
    if not 0 <= row < len(result.tokens):
        raise ValueError(f"row is {row}: the result has rows 0 to {len(result.tokens) - 1}")
    tokens = result.tokens[row].tolist()
    counts = [step[row] for step in result.step_tokens]
    steps: list[list[Seen]] = []
    if len(recording.steps) == len(counts):
        steps = [_recorded(step, count, row) for step, count in zip(recording.steps, counts, strict=True)]
    steps = [[(tokens[0], "own", None, None)], *steps]
    if [token for step in steps for token, kind, _, _ in step if kind != "rejected"] != tokens:
        raise ValueError("this recording is not of this result: use a new Recording for each call")
    used = [True, *[count > 0 for count in counts]]
    seconds = [result.ttft_s, *result.step_s]
    return Transcript(
        title=title,
        steps=_with_text(steps, tokenizer),
        seconds=[value for value, use in zip(seconds, used, strict=True) if use],
        emitted=[count for count in [1, *counts] if count],
        baseline_seconds=[] if baseline is None else _seconds_of(baseline, row),
    )


def _seconds_of(baseline: DecodeResult, row: int) -> list[float]:
    """How long each token took in the same row of a baseline, or in its only one."""
    tokens = baseline.tokens[row if len(baseline.tokens) > 1 else 0]
    return [baseline.ttft_s, *baseline.step_s][: len(tokens)]


def _recorded(step: RecordedStep, count: int, row: int) -> list[Seen]:
    """The tokens of one step and row: id, kind, target and draft probability."""
    draft_tokens, draft_probs, target_probs = (values[row].tolist() for values in step[:3])
    accepted = int(step.num_accepted[row])
    drafted = sum(prob > 0 for prob in draft_probs)
    tokens: list[Seen] = [
        (draft_tokens[i], "accepted", target_probs[i], draft_probs[i]) for i in range(min(accepted, count))
    ]
    if count <= accepted:  # the row ended among the accepted ones
        return tokens
    rejected = accepted < drafted
    if rejected:
        tokens.append((draft_tokens[accepted], "rejected", target_probs[accepted], draft_probs[accepted]))
    kind = "resampled" if rejected else "bonus" if drafted else "own"
    draft_prob = float(step.next_draft_prob[row]) if rejected else None
    return [*tokens, (int(step.next_token[row]), kind, float(step.next_target_prob[row]), draft_prob)]


def _with_text(
    steps: Sequence[Sequence[Seen]], tokenizer: transformers.PreTrainedTokenizerBase | None
) -> list[list[TranscriptToken]]:
    """Tokens as text, each in the context of those before it: a letter may be spread over several tokens."""
    before: list[int] = []
    shown: list[list[TranscriptToken]] = []
    for step in steps:
        shown.append([])
        for token, kind, target_prob, draft_prob in step:
            shown[-1].append(TranscriptToken(kind, _text(tokenizer, before, token), target_prob, draft_prob))
            if kind != "rejected":
                before.append(token)
    return [step for step in shown if step]


def _text(tokenizer: transformers.PreTrainedTokenizerBase | None, before: list[int], token: int) -> str:
    if tokenizer is None:
        return f"{token} "
    context = before[-8:]
    without = tokenizer.decode(context, clean_up_tokenization_spaces=False)
    return tokenizer.decode([*context, token], clean_up_tokenization_spaces=False)[len(without.rstrip("\ufffd")) :]
