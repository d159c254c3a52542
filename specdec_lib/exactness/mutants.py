"""Samplers with one realistic bug each. They go through the same engine as the sound one; only the named part differs.

Some bugs lie in verification, some in what a draft reports, one in the cache. `exactness_levels` looks at all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch.nn.functional import pad

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers import ModelProposer, Proposal, Proposer
from specdec_lib.decoding.sampling import draw, probabilities
from specdec_lib.decoding.speculative import Verifier
from specdec_lib.decoding.state import DecodeState
from specdec_lib.decoding.streams import uniforms
from specdec_lib.decoding.verification import Verification, count_accepted, residual_probs, verify
from specdec_lib.models.cache import RaggedLayer, RaggedStaticCache
from specdec_lib.models.runner import LanguageModel

SOUND = "sound"
Filter = Callable[[torch.Tensor, SamplingConfig], torch.Tensor]


@dataclass(frozen=True)
class Sut:
    """A system under test: what `speculative_decode` is given."""

    target: LanguageModel
    proposer: Proposer
    verification: Verifier


def without_residual(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """After a rejection it draws from the target instead of the residual."""
    accepted = count_accepted(target_probs, draft_probs, draft_tokens, _uniforms(target_probs, generator))
    return Verification(accepted, draw(_row(target_probs, accepted), generator))


def residual_not_normalised(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """It inverts the cumulative residual as if that summed to 1: what is missing goes to the last token."""
    accepted = count_accepted(target_probs, draft_probs, draft_tokens, _uniforms(target_probs, generator))
    residual = (_row(target_probs, accepted) - _row(pad(draft_probs, (0, 0, 0, 1)), accepted)).clamp(min=0)
    return Verification(accepted, _invert(residual, _number(accepted, generator)))


def bonus_from_draft(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """After full acceptance the last draft row is drawn from instead of the target's."""
    drafted = draft_probs[:, -1:].sum(dim=-1, keepdim=True) > 0
    bonus = torch.where(drafted, draft_probs[:, -1:], target_probs[:, -1:])
    return verify(torch.cat([target_probs[:, :-1], bonus], dim=1), draft_probs, draft_tokens, generator)


def missing_bonus(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """After full acceptance it emits the gamma draft tokens and nothing more: the right law, at a needless cost."""
    verdict = verify(target_probs, draft_probs, draft_tokens, generator)
    whole = verdict.num_accepted == draft_tokens.shape[1]
    return Verification(
        verdict.num_accepted - whole.long(), torch.where(whole, draft_tokens[:, -1], verdict.next_token)
    )


def kept_after_rejection(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """It counts every accepted token, those behind the first rejection too."""
    uniforms = _uniforms(target_probs, generator)
    accepted = torch.stack(
        [
            count_accepted(target_probs[:, i : i + 2], draft_probs[:, i : i + 1], draft_tokens[:, i : i + 1], uniform)
            for i, uniform in enumerate(uniforms.split(1, dim=1))
        ]
    ).sum(dim=0)
    return Verification(accepted, draw(residual_probs(target_probs, draft_probs, accepted), generator))


def one_stream(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """The residual is drawn with the number that rejected, as when two kernels start from one seed and offset."""
    uniforms = _uniforms(target_probs, generator)
    accepted = count_accepted(target_probs, draft_probs, draft_tokens, uniforms)
    uniform = uniforms.gather(1, accepted.clamp(max=uniforms.shape[1] - 1)[:, None])
    return Verification(accepted, _invert(residual_probs(target_probs, draft_probs, accepted), uniform))


def row_too_early(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """Each draft token but the first is verified with the target row of the token before it."""
    shifted = torch.cat([target_probs[:, :1], target_probs[:, :-1]], dim=1)
    return verify(shifted, draft_probs, draft_tokens, generator)


def first_row_for_all(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """The number accepted in the first row of the batch is applied to all rows."""
    accepted = count_accepted(target_probs, draft_probs, draft_tokens, _uniforms(target_probs, generator))
    accepted = accepted[:1].expand(len(accepted))
    return Verification(accepted, draw(residual_probs(target_probs, draft_probs, accepted), generator))


class MisreportingProposer(ModelProposer):
    """Draws its tokens from one distribution and reports another."""

    def __new__(cls, *_: object) -> Self:
        return object.__new__(cls)

    def __init__(self, draft: LanguageModel, drawn: Filter, reported: Filter):
        super().__init__(draft)
        self.drawn, self.reported = drawn, reported

    def propose(
        self, state: DecodeState, num_draft_tokens: int, sampling: SamplingConfig, generator: torch.Generator
    ) -> Proposal:
        self.cache.set_lengths(state.lengths - 2, state.max_length - 2)
        last_two = state.lengths[:, None] + torch.arange(-2, 0, device=state.lengths.device)
        tokens, drafted, reported = state.tokens.gather(1, last_two), [], []
        for _ in range(num_draft_tokens):
            hidden = self._forward(tokens)
            self.cache.commit(tokens.shape[1], at_most=tokens.shape[1])
            logits = self.draft.logits(hidden[:, -1])
            tokens = self._choose(self.drawn(logits, sampling), sampling, generator)
            drafted.append(tokens)
            reported.append(self.reported(logits, sampling))
        return torch.cat(drafted, dim=1), torch.stack(reported, dim=1)

    def _choose(self, probs: torch.Tensor, sampling: SamplingConfig, generator: torch.Generator) -> torch.Tensor:
        return (probs.argmax(dim=-1) if sampling.temperature == 0 else draw(probs, generator))[:, None]


class RecordingProposer(MisreportingProposer):
    """Drafts soundly and remembers the number that each token was drawn with, for `redraw` to use again."""

    def __init__(self, draft: LanguageModel):
        super().__init__(draft, probabilities, probabilities)
        self.numbers: list[torch.Tensor] = []

    def _choose(self, probs: torch.Tensor, sampling: SamplingConfig, generator: torch.Generator) -> torch.Tensor:
        self.numbers.append(_number(probs, generator))
        return probs.argmax(dim=-1, keepdim=True) if sampling.temperature == 0 else _invert(probs, self.numbers[-1], 1)

    def redraw(
        self,
        target_probs: torch.Tensor,
        draft_probs: torch.Tensor,
        draft_tokens: torch.Tensor,
        generator: torch.Generator,
    ) -> Verification:
        """Draw the residual with the number that the rejected token was drawn with (vLLM issue 54282)."""
        accepted = count_accepted(target_probs, draft_probs, draft_tokens, _uniforms(target_probs, generator))
        fresh = _number(accepted, generator)
        numbers = torch.cat([*self.numbers[-draft_tokens.shape[1] :], fresh], dim=1).gather(1, accepted[:, None])
        return Verification(accepted, _invert(residual_probs(target_probs, draft_probs, accepted), numbers))


class StaleTarget(LanguageModel):
    """A target whose cache never writes a position twice, so that a rejected token's entry stays after the rollback."""

    def new_cache(self, batch_size: int, capacity: int) -> RaggedStaticCache:
        cache = super().new_cache(batch_size, capacity)
        for layer in cache.layers:
            assert isinstance(layer, RaggedLayer)
            written = torch.zeros(batch_size, layer.capacity, dtype=torch.bool)
            layer.update = functools.partial(_write_once, layer, written)  # type: ignore[method-assign]
        return cache


def _write_once(
    layer: RaggedLayer, written: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *args: object, **kwargs: object
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, positions = layer.placement.rows, layer.placement.positions
    stale = written[rows, positions][:, None, :, None]  # [B, 1, m, 1]
    keys = torch.where(stale, layer.keys[rows, :, positions].transpose(1, 2), keys)
    values = torch.where(stale, layer.values[rows, :, positions].transpose(1, 2), values)
    written[rows, positions] = True
    return RaggedLayer.update(layer, keys, values)


def systems(target: LanguageModel, draft: LanguageModel) -> dict[str, Sut]:
    """The sound sampler and its mutants, by name."""
    sound = Sut(target, ModelProposer(draft), verify)

    def verified_by(verifier: Verifier) -> Sut:
        return replace(sound, verification=verifier)

    def misreported(drawn: Filter, reported: Filter) -> Sut:
        return replace(sound, proposer=MisreportingProposer(draft, drawn, reported))

    recording = RecordingProposer(draft)
    return {
        SOUND: sound,
        "no residual: resamples from the target": verified_by(without_residual),
        "residual not normalised": verified_by(residual_not_normalised),
        "bonus token from the draft": verified_by(bonus_from_draft),
        "missing bonus token": verified_by(missing_bonus),
        "tokens kept after the first rejection": verified_by(kept_after_rejection),
        "draft probabilities taken before top-k and top-p": misreported(
            probabilities, lambda logits, s: probabilities(logits, replace(s, top_k=0, top_p=1.0))
        ),
        "temperature on one side only": misreported(
            lambda logits, s: probabilities(logits, replace(s, temperature=float(s.temperature > 0))),
            probabilities,
        ),
        "uniform and residual draw share a stream": verified_by(one_stream),
        "draft draw and residual draw share a stream": Sut(target, recording, recording.redraw),
        "draft sampled in bfloat16, ratio in float32": misreported(_in_bfloat16, probabilities),
        "off-by-one target row": verified_by(row_too_early),
        "stale cache entry after a rollback": replace(sound, target=StaleTarget(target.model, target.name)),
        "one row's acceptance for the whole batch": verified_by(first_row_for_all),
    }


def _in_bfloat16(logits: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    probs = probabilities(logits, sampling)
    return probs.bfloat16().to(probs.dtype)


def _uniforms(target_probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # [B, gamma]
    return uniforms(target_probs, target_probs.shape[1] - 1, generator)  # as `verify` does


def _number(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # [B, 1]
    return uniforms(rows, 1, generator)


def _row(probs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:  # [B, n, V] and [B] to [B, V]
    return probs[torch.arange(len(index), device=index.device), index]


def _invert(probs: torch.Tensor, uniform: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """The token `[B]` (`[B, 1]` with `width`) at which the cumulative of `probs` `[B, V]` passes `uniform` `[B, 1]`."""
    index = torch.searchsorted(probs.double().cumsum(dim=-1), uniform.contiguous(), right=True)
    index = index.clamp(max=probs.shape[-1] - 1)
    return index if width else index[:, 0]
