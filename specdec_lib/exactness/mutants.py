"""Samplers with one realistic bug each. They run in the same engine as the sound one; only the named part differs.

Some bugs are in a verification rule, some in what a draft reports, one in the cache. `mutant_battery` tests them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.proposer import Drafting, Proposal, Proposer
from specdec_lib.decoding.proposers.two_chains import TwoChainsProposer
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.sampling import RandomOps, probabilities
from specdec_lib.decoding.verification import RANDOM, Verification, Verify, chance_of, residual_weights, verify
from specdec_lib.decoding.verification.block import joint_chances, keep_chances, remainders
from specdec_lib.exactness.certificate import SOUND
from specdec_lib.exactness.chain_mutants import second_against_the_target, second_as_if_replaced
from specdec_lib.models.cache import RaggedLayer, RaggedStaticCache
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel

Filter = Callable[[Tensor, SamplingConfig], Tensor]  # logits to probabilities
TWO_TOKENS = SamplingConfig(temperature=0.7, top_k=2)  # quick, and enough for most bugs
THREE_TOKENS = SamplingConfig(temperature=0.7)  # of two, a residual is one token whatever its weights are


@dataclass(frozen=True)
class SystemUnderTest:
    """What `speculative_decode` is given."""

    target: LanguageModel
    proposer: Proposer
    verification: Verify
    sampling: SamplingConfig = TWO_TOKENS  # at which its law is taken


Count = Callable[[Tensor], Tensor]  # tests passed [B, gamma] to the number accepted [B]
Weights = Callable[[Tensor, Tensor, Tensor], Tensor]  # target_probs, draft_probs, num_accepted to weights [B, V]
Numbers = Callable[[Tensor, Tensor], Tensor]  # uniforms [B, gamma+1], num_accepted to the last token's number [B]


def prefix(passed: Tensor) -> Tensor:
    """How many tests pass before the first that does not."""
    return passed.long().cumprod(dim=1).sum(dim=1)


@dataclass(frozen=True)
class Rule:
    """The rule of `verification.verify`, each part of which a mutant may replace."""

    ends_at_first_failure = True  # nearly: what a mutant does else is unexplained, and rejected
    count: Count = prefix
    weights: Weights = residual_weights
    number: Numbers = lambda uniforms, num_accepted: uniforms[:, -1]

    def __call__(
        self,
        target_probs: Tensor,
        draft_probs: Tensor,
        draft_tokens: Tensor,
        uniforms: Tensor,
        ops: RandomOps = RANDOM,
    ) -> Verification:
        target, draft = chance_of(draft_tokens, target_probs[:, :-1]), chance_of(draft_tokens, draft_probs)
        accepted = self.count(ops.accept(uniforms[:, :-1], target.double() / draft) & (draft > 0))
        weights = self.weights(target_probs, draft_probs, accepted)
        return Verification(accepted, ops.invert(weights, self.number(uniforms, accepted)))


def row(probs: Tensor, index: Tensor) -> Tensor:  # [B, n, V], [B] -> [B, V]
    """One distribution of each row."""
    return probs[torch.arange(len(index), device=index.device), index]


def _not_normalised(target_probs: Tensor, draft_probs: Tensor, num_accepted: Tensor) -> Tensor:
    """The residual as if it summed to 1: what is missing goes to the last token."""
    residual = residual_weights(target_probs, draft_probs, num_accepted)
    residual[:, -1] += 1 - residual.sum(dim=-1)
    return residual


def _bonus_from_draft(target_probs: Tensor, draft_probs: Tensor, num_accepted: Tensor) -> Tensor:
    """After full acceptance the last draft row instead of the target's."""
    whole = (num_accepted == draft_probs.shape[1])[:, None]
    return torch.where(whole, draft_probs[:, -1], residual_weights(target_probs, draft_probs, num_accepted))


without_residual = Rule(weights=lambda target, draft, accepted: row(target, accepted))
kept_after_rejection = Rule(count=lambda passed: passed.sum(dim=1))
first_row_for_all = Rule(count=lambda passed: prefix(passed)[:1].expand(len(passed)))
# As when two kernels start from one seed and offset: the number that rejected draws again.
one_stream = Rule(number=lambda uniforms, n: row(uniforms[:, :, None], n.clamp(max=uniforms.shape[1] - 2))[:, 0])


def missing_bonus(
    target_probs: Tensor, draft_probs: Tensor, draft_tokens: Tensor, uniforms: Tensor, ops: RandomOps = RANDOM
) -> Verification:
    """After full acceptance it emits the gamma draft tokens and nothing more: the right law, at a needless cost."""
    accepted, token = verify(target_probs, draft_probs, draft_tokens, uniforms, ops)
    whole = accepted == draft_tokens.shape[1]
    return Verification(accepted - whole.long(), torch.where(whole, draft_tokens[:, -1], token))


def row_too_early(
    target_probs: Tensor, draft_probs: Tensor, draft_tokens: Tensor, uniforms: Tensor, ops: RandomOps = RANDOM
) -> Verification:
    """Each draft token but the first is verified with the target row of the token before it."""
    shifted = torch.cat([target_probs[:, :1], target_probs[:, :-1]], dim=1)
    return verify(shifted, draft_probs, draft_tokens, uniforms, ops)


@dataclass(frozen=True)
class BlockRule:
    """The rule of `verification.block.verify_block`, two parts of which a mutant may replace."""

    joint: Callable[[Tensor, Tensor, Tensor], Tensor] = joint_chances
    weights: Callable[[Tensor, Tensor, Tensor], Tensor] = remainders  # target_probs, draft_probs, joint

    def __call__(
        self,
        target_probs: Tensor,
        draft_probs: Tensor,
        draft_tokens: Tensor,
        uniforms: Tensor,
        ops: RandomOps = RANDOM,
    ) -> Verification:
        joint = self.joint(target_probs, draft_probs, draft_tokens)
        passed = ops.accept(uniforms[:, :-1], keep_chances(remainders(target_probs, draft_probs, joint), joint)[:, 1:])
        accepted = (passed * torch.arange(1, passed.shape[1] + 1)).amax(dim=1)
        weights = row(self.weights(target_probs, draft_probs, joint), accepted)
        return Verification(accepted, ops.invert(torch.where(weights.any(1, True), weights, 1.0), uniforms[:, -1]))


def _uncut_joint(target_probs: Tensor, draft_probs: Tensor, draft_tokens: Tensor) -> Tensor:
    """The product of ratios, cut at 1 only where it is used: it forgets that an earlier prefix was cut."""
    target, draft = chance_of(draft_tokens, target_probs[:, :-1]), chance_of(draft_tokens, draft_probs)
    ratio = torch.where(draft > 0, target.double() / draft, 0.0)
    return torch.nn.functional.pad(ratio.cumprod(dim=1), (1, 0), value=1.0).clamp(max=1)


block_with_token_residual = BlockRule(
    weights=lambda target, draft, joint: remainders(target, draft, torch.ones_like(joint))
)
block_with_uncut_joint = BlockRule(joint=_uncut_joint)


@dataclass(frozen=True)
class MisreportingProposer(ModelProposer):
    """Draws its tokens from one distribution and reports another."""

    drawn: Filter
    reported: Filter

    def start(self, call: Call) -> Drafting:
        ops = _MisreportingOps(call.sampling, call.ops, self.drawn, self.reported)
        return super().start(replace(call, ops=ops))


@dataclass(frozen=True)
class _MisreportingOps(PlainOps):
    ops: PlainOps
    drawn: Filter
    reported: Filter
    last_logits: list[Tensor] = field(default_factory=list)

    def probabilities(self, logits: Tensor) -> Tensor:
        self.last_logits[:] = [logits]
        return self.reported(logits, self.sampling)

    def choose(self, probs: Tensor, uniforms: Tensor) -> Tensor:
        return self.ops.choose(self.drawn(self.last_logits[0], self.sampling), uniforms)


@dataclass(frozen=True)
class ChoosyProposer(ModelProposer):
    """Drops a draft token that came out unlikely, and those after it: what stays is likelier than it reports."""

    def start(self, call: Call) -> Drafting:
        return _ChoosyDrafting(super().start(call))


@dataclass(frozen=True)
class _ChoosyDrafting(Drafting):
    drafting: Drafting

    def read_prompt(self, rows: Rows, start: int, end: int, features: Tensor) -> None:
        self.drafting.read_prompt(rows, start, end, features)

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: Tensor) -> Proposal:
        tokens, probs = self.drafting.propose(rows, num_draft_tokens, uniforms)
        dropped = (chance_of(tokens, probs) < 0.5).cumsum(dim=1) > 0
        return tokens, probs.masked_fill(dropped[:, :, None], 0)


class RememberingProposer(Proposer):
    """Drafts soundly and remembers the numbers that its tokens were drawn with, for the residual."""

    def __init__(self, proposer: Proposer):
        self.proposer = proposer

    def start(self, call: Call) -> Drafting:
        self.drafting = self.proposer.start(call)
        return self

    def read_prompt(self, rows: Rows, start: int, end: int, features: Tensor) -> None:
        self.drafting.read_prompt(rows, start, end, features)

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: Tensor) -> Proposal:
        self.numbers = uniforms[:, :num_draft_tokens]
        return self.drafting.propose(rows, num_draft_tokens, uniforms)

    def number(self, uniforms: Tensor, num_accepted: Tensor) -> Tensor:  # [B, gamma+1], [B] -> [B]
        """The number that the rejected token was drawn with (vLLM issue 54282); a fresh one for the bonus token."""
        return row(torch.cat([self.numbers, uniforms[:, -1:]], dim=1)[:, :, None], num_accepted)[:, 0]


class StaleTarget(LanguageModel):
    """A target whose cache never writes a position twice, so that a rejected token's entry stays after the rollback."""

    def new_cache(self, batch_size: int, capacity: int) -> RaggedStaticCache:
        cache = super().new_cache(batch_size, capacity)
        assert isinstance(cache, RaggedStaticCache)
        for layer in cache.layers:
            assert isinstance(layer, RaggedLayer)
            written = torch.zeros(batch_size, layer.capacity, dtype=torch.bool)
            layer.update = functools.partial(_write_once, layer, written)  # type: ignore[method-assign]
        return cache


def _write_once(
    layer: RaggedLayer, written: Tensor, keys: Tensor, values: Tensor, *args: object, **kwargs: object
) -> tuple[Tensor, Tensor]:
    rows, positions = layer.placement.rows, layer.placement.positions
    stale = written[rows, positions][:, None, :, None]  # [B, 1, m, 1]
    keys = torch.where(stale, layer.keys[rows, :, positions].transpose(1, 2), keys)
    values = torch.where(stale, layer.values[rows, :, positions].transpose(1, 2), values)
    written[rows, positions] = True
    return RaggedLayer.update(layer, keys, values)


def systems(pair: Pair) -> dict[str, SystemUnderTest]:
    """The sound sampler and its mutants, by name."""
    assert isinstance(pair.draft, LanguageModel)
    target, draft = pair.target, pair.draft
    sound = SystemUnderTest(target, ModelProposer(draft), verify)
    remembering = RememberingProposer(sound.proposer)
    rules: dict[str, Verify] = {
        "no residual: resamples from the target": without_residual,
        "residual not normalised": Rule(weights=_not_normalised),
        "bonus token from the draft": Rule(weights=_bonus_from_draft),
        "missing bonus token": missing_bonus,
        "tokens kept after the first rejection": kept_after_rejection,
        "uniform and residual draw share a stream": one_stream,
        "off-by-one target row": row_too_early,
        "one row's acceptance for the whole batch": first_row_for_all,
    }
    blocks: dict[str, Verify] = {
        "block verification with the residual of a token": block_with_token_residual,
        "block verification with an uncut joint ratio": block_with_uncut_joint,
    }
    misreports: dict[str, tuple[Filter, Filter]] = {
        "draft probabilities taken before top-k and top-p": (probabilities, _unfiltered),
        "temperature on one side only": (_at_temperature_1, probabilities),
        "draft sampled in bfloat16, ratio in float32": (_in_bfloat16, probabilities),
    }
    restrictions: dict[str, tuple[Filter, Filter]] = {
        "shared tokens only, not renormalised": (_of_shared_tokens, _not_renormalised),
        "shared tokens only, verified against the whole draft": (_of_shared_tokens, probabilities),
    }
    return {
        SOUND: sound,
        **{name: replace(sound, verification=rule) for name, rule in rules.items()},
        **{name: replace(sound, verification=rule, sampling=THREE_TOKENS) for name, rule in blocks.items()},
        "second candidate tested against the target, not its residual": replace(
            sound, proposer=TwoChainsProposer(draft, second_against_the_target)
        ),
        "second candidate's law with the first one in it": replace(
            sound, proposer=TwoChainsProposer(draft, second_as_if_replaced), sampling=THREE_TOKENS
        ),
        **{name: replace(sound, proposer=MisreportingProposer(draft, *pair)) for name, pair in misreports.items()},
        "draft cut where a drawn token is unlikely": replace(sound, proposer=ChoosyProposer(draft)),
        **{
            name: replace(sound, proposer=MisreportingProposer(draft, *pair), sampling=THREE_TOKENS)
            for name, pair in restrictions.items()
        },
        "draft draw and residual draw share a stream": SystemUnderTest(
            target, remembering, Rule(number=remembering.number)
        ),
        "stale cache entry after a rollback": replace(sound, target=StaleTarget(target.model, target.name)),
    }


def _unfiltered(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    return probabilities(logits, replace(sampling, top_k=0, top_p=1.0))


def _at_temperature_1(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    return probabilities(logits, replace(sampling, temperature=float(sampling.temperature > 0)))


def _in_bfloat16(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    probs = probabilities(logits, sampling)
    return probs.bfloat16().to(probs.dtype)


def _of_shared_tokens(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """The draft of a target that lacks token 1, as it should be."""
    return probabilities(logits.index_fill(-1, torch.tensor([1]), -torch.inf), sampling)


def _not_renormalised(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    return probabilities(logits, sampling).index_fill(-1, torch.tensor([1]), 0.0)
