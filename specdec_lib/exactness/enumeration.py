"""The law of what speculative decoding emits, computed without sampling, by running the decoding code on every path.

Decoding is a function of its uniform random numbers. That function is constant on boxes: a draw yields the same token
as long as its number stays between two steps of the cumulative distribution, a draft token is kept as long as its
number stays below target/draft. The law of the output is therefore a sum of box volumes, and nothing about the rule
has to be written down a second time: the decoding code itself runs in every box, with numbers out of that box.

Where the boxes end is read off while the code runs (`_Script` sees what its numbers are compared with) and is then
not trusted: the code runs again at the lowest and the highest corner of every box. It decides each number by one
threshold after another, so equal answers at both corners and in the middle mean that the whole box answers alike.
Boxes whose corners disagree count as unexplained; a rule that uses one number twice has such boxes.

The middle is run operator by operator, to be looked at. The corners take the way that any call takes: through whatever
computes the layers; where steps are captured, as replays over static buffers; of a target on the CPU kernels, through
those that draw, verify and commit, too, though they otherwise serve larger vocabularies only. So a replay or a kernel
that answers otherwise than the steps themselves is unexplained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers import Proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.sampling import invert
from specdec_lib.decoding.speculative import VERIFICATIONS, Verifier, speculative_decode
from specdec_lib.decoding.streams import RowStreams
from specdec_lib.decoding.verification import Verification, count_accepted
from specdec_lib.kernels import vocabulary
from specdec_lib.models.runner import LanguageModel

Law = dict[tuple[int, ...], float]  # a sequence of tokens to its probability
ROWS_AT_ONCE = 2**15
INSIDE = 1e-13  # how far from a face the corners are tried


@dataclass
class Enumeration:
    """What `enumerate_output` found.

    Attributes:
        laws: the law of the emitted tokens for each prompt.
        unexplained: share of the volume in which the code does not always answer alike; 0 for a sound rule.
        paths: boxes of positive volume, over all prompts.
    """

    laws: list[Law]
    unexplained: float = 0.0
    paths: int = 0

    def error(self, targets: Sequence[Law]) -> float:
        """Largest absolute difference of a sequence's probability from the target's, over all prompts."""
        return max(
            abs(law.get(sequence, 0.0) - target.get(sequence, 0.0))
            for law, target in zip(self.laws, targets, strict=True)
            for sequence in law.keys() | target.keys()
        )

    def total_variation(self, targets: Sequence[Law]) -> float:
        """Total-variation distance from the target's law, the largest over the prompts."""
        return max(total_variation(law, target) for law, target in zip(self.laws, targets, strict=True))


def tolerance(dtype: torch.dtype) -> float:
    """The error of a sequence's probability that rounding explains: only float64 models have float64 probabilities."""
    return 1e-12 if dtype == torch.float64 else 1e-6


def total_variation(one: Law, other: Law) -> float:
    """Half the sum of absolute differences of two laws."""
    return sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in one.keys() | other.keys()) / 2


@dataclass
class _Boxes:
    """Boxes of uniforms, one a row: `low` and `high` `[N, D]`, and the prompt that each row continues `[N]`."""

    prompt: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __len__(self) -> int:
        return len(self.prompt)

    def pick(self, rows: torch.Tensor) -> _Boxes:
        return _Boxes(self.prompt[rows], self.low[rows], self.high[rows])

    def at(self, share: float) -> torch.Tensor:  # [N, D]
        """The point that lies at `share` of the way through each box, `INSIDE` off the faces at 0 and 1."""
        inside = torch.minimum((self.high - self.low) / 4, torch.full_like(self.low, INSIDE))
        return (self.low + inside) * (1 - share) + (self.high - inside) * share

    @property
    def volume(self) -> torch.Tensor:  # [N]
        return (self.high - self.low).prod(dim=1)


@dataclass
class _Call:
    """Numbers taken at once: the dimensions they are, and where the running code changes its mind about each."""

    numbers: torch.Tensor  # [N, w]
    first: int
    passage: int  # of the streams, and the place in it
    place: int
    step: int  # of decoding; -1 is the prefill
    in_verify: bool
    position: int  # among the calls of its step outside or inside verification
    faces: torch.Tensor | None = None  # of a draw: [N, V]; of a comparison: [N, w]
    is_draw: bool = False


@dataclass
class _Script(TorchFunctionMode):
    """Hands out scripted uniforms (through `_ScriptedStreams`), and sees what they are compared with."""

    points: torch.Tensor  # [N, D]; what lies behind the last dimension is 1/2
    calls: list[_Call] = field(default_factory=list)
    drafted: list[torch.Tensor] = field(default_factory=list)  # [N] of each step
    accepted: list[torch.Tensor] = field(default_factory=list)  # [N] of each step
    in_verify: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if instead := BY_OPERATORS.get(str(func)):
            with self:  # look at what it does
                return instead(*args, **kwargs)
        last = self.calls[-1] if self.calls else None
        for call in self.calls[-2:] if func is torch.Tensor.lt else []:
            if args[0] is call.numbers:
                call.faces = args[1].double().clamp(0, 1).cpu()
        if func is torch.searchsorted and last is not None and last.numbers.shape == (len(args[0]), 1):
            cumulative, point = (arg.double().flatten(0, -2) for arg in args[:2])  # of a token a row
            scale = point / last.numbers  # the code may search for a multiple of its number
            last.faces, last.is_draw = (cumulative / scale).clamp(max=1).cpu(), True
            last.faces[:, -1] = 1.0
        return func(*args, **kwargs)

    def take(self, width: int, streams: RowStreams) -> torch.Tensor:
        """The next `width` numbers of every row, `[N, width]`, which `streams` hands out."""
        first = self.calls[-1].first + self.calls[-1].numbers.shape[1] if self.calls else 0
        missing = first + width - self.points.shape[1]
        if missing > 0:
            self.points = torch.nn.functional.pad(self.points, (0, missing), value=0.5)
        numbers = self.points[:, first : first + width].to(streams.device, copy=True)
        step = len(self.accepted) if self.calls else -1
        position = sum(call.step == step and call.in_verify == self.in_verify for call in self.calls)
        self.calls.append(_Call(numbers, first, streams.passage, streams.taken, step, self.in_verify, position))
        return numbers

    def watch(self, verifier: Verifier) -> Verifier:
        """The same verification, noting for each step how many tokens were drafted and accepted."""

        def watched(
            target_probs: torch.Tensor,
            draft_probs: torch.Tensor,
            draft_tokens: torch.Tensor,
            generator: torch.Generator,
        ) -> Verification:
            self.in_verify = True
            verdict = verifier(target_probs, draft_probs, draft_tokens, generator)
            self.in_verify = False
            self.drafted.append((draft_probs.sum(dim=-1) > 0).long().cumprod(dim=1).sum(dim=1).cpu())
            self.accepted.append(verdict.num_accepted)
            return verdict

        return watched


def _verify_by_operators(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, *uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tests, numbers = uniforms
    accepted = count_accepted(target_probs, draft_probs, draft_tokens, tests)
    row, no_draft = torch.arange(len(accepted)), torch.zeros_like(target_probs[:, :1])
    target, draft = target_probs[row, accepted], torch.cat([draft_probs, no_draft], dim=1)[row, accepted]
    residual = (target - draft).clamp(min=0)
    return accepted, invert(torch.where(residual.any(dim=-1, keepdim=True), residual, target), numbers)


# What stands for kernels where what they decide is to be looked at, with no more rounding than theirs.
BY_OPERATORS: dict[str, Callable[..., Any]] = {"specdec_lib.draw": invert, "specdec_lib.verify": _verify_by_operators}


class _ScriptedStreams(RowStreams):
    """What decoding is given: streams whose numbers are those of a script."""

    script: _Script

    def take(self, count: int) -> torch.Tensor:
        numbers = self.script.take(count, self)
        self.taken += count
        return numbers


class _GivenStreams(RowStreams):
    """Streams of the numbers that `calls` were handed, had `points` `[N, D]` been scripted; 1/2 in all other places."""

    def __init__(self, points: torch.Tensor, calls: Sequence[_Call], device: torch.device):
        super().__init__(0, range(len(points)), device)
        width = max((call.place + call.numbers.shape[1] for call in calls), default=0)
        passages = calls[-1].passage + 1 if calls else 0
        self.table = torch.full((len(points), passages, width), 0.5, dtype=torch.float64)
        for call in calls:
            numbers = points[:, call.first : call.first + call.numbers.shape[1]]
            self.table[:, call.passage, call.place : call.place + numbers.shape[1]] = numbers

    def __new__(cls, points: torch.Tensor, calls: Sequence[_Call], device: torch.device) -> Self:  # noqa: ARG004
        return super().__new__(cls, 0, (), device)

    def numbers_of(self, first: int, passages: int, width: int) -> torch.Tensor:
        known = self.table[:, first : first + passages, :width]
        missing = (0, width - known.shape[2], 0, passages - known.shape[1])
        return torch.nn.functional.pad(known, missing, value=0.5).to(self.device)


@dataclass(frozen=True)
class _Decoder:
    """Decodes the prompts of boxes with the numbers at a point of each."""

    target: LanguageModel
    proposer: Proposer
    prompts: Sequence[torch.Tensor]
    verifier: Verifier
    options: dict[str, Any]

    def decode(self, prompt: torch.Tensor, streams: RowStreams, verifier: Verifier) -> DecodeResult:
        prompts = [self.prompts[index] for index in prompt.tolist()]
        options: dict[str, Any] = self.options | {"generator": streams, "verification": verifier}
        with vocabulary.serving_from(vocabulary.SMALLEST if self.target.engine != "kernels" else 1):
            return speculative_decode(self.target, self.proposer, prompts, **options)

    def look_at(self, boxes: _Boxes) -> tuple[DecodeResult, _Script]:
        """What the middle of each box gives, and which numbers it asked for."""
        script = _Script(boxes.at(0.5))
        streams = _ScriptedStreams(0, range(len(boxes)), self.target.device)
        streams.script = script
        with script:
            return self.decode(boxes.prompt, streams, script.watch(self.verifier)), script

    def at_corner(self, boxes: _Boxes, share: float, calls: list[_Call]) -> torch.Tensor:  # [N, new tokens]
        streams = _GivenStreams(boxes.at(share), calls, self.target.device)
        return torch.stack(self.decode(boxes.prompt, streams, self.verifier).tokens)


def enumerate_output(
    target: LanguageModel,
    proposer: Proposer,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    num_draft_tokens: int,
    sampling: SamplingConfig,
    verification: str | Verifier = "token",
) -> Enumeration:
    """Compute the law of the tokens that `speculative_decode` emits behind each prompt, for toys.

    What is left of the error is rounding: 1e-15 in float64. Logits must not depend on what is computed beside them by
    more than `INSIDE`, so they are in float64, or of the kernels.

    Every path is a row of a ragged batch, so cache, rollback, bonus and the step after next take part. The number of
    paths grows as (possible tokens) ** (draft and emitted tokens): a few tokens, a few draft tokens.
    """
    options = {"max_new_tokens": max_new_tokens, "num_draft_tokens": num_draft_tokens, "sampling": sampling}
    verifier = VERIFICATIONS[verification] if isinstance(verification, str) else verification
    decoder = _Decoder(target, proposer, prompts, verifier, options)
    found = Enumeration([{} for _ in prompts])
    start = torch.zeros(len(prompts), 0, dtype=torch.float64)
    queue = [(_Boxes(torch.arange(len(prompts)), start, start), 0)]
    while queue:
        boxes, done = queue.pop()
        result, script = decoder.look_at(boxes)
        call = script.calls[done] if done < len(script.calls) else None
        alive = torch.full((len(boxes),), call is not None)
        if call is not None and call.step >= 0:
            alive = torch.tensor(result.step_tokens[call.step]) > 0
        leaves = boxes.pick(~alive)
        if len(leaves):
            low, high = (decoder.at_corner(leaves, share, script.calls[:done]) for share in (0.0, 1.0))
            middle = torch.stack(result.tokens)[~alive]
            _count(found, leaves, middle, ((middle == low) & (middle == high)).all(dim=1))
        if call is not None:
            split = _split(boxes, script, call, alive)
            queue += [(split.pick(rows), done + 1) for rows in torch.arange(len(split)).split(ROWS_AT_ONCE)]
    return found


def _count(found: Enumeration, boxes: _Boxes, tokens: torch.Tensor, explained: torch.Tensor) -> None:
    volume = boxes.volume
    found.paths += len(boxes)
    found.unexplained += float(volume[~explained].sum()) / len(found.laws)
    for prompt, sequence, mass in zip(boxes.prompt.tolist(), tokens.tolist(), volume.tolist(), strict=True):
        law = found.laws[prompt]
        law[tuple(sequence)] = law.get(tuple(sequence), 0.0) + mass


def _split(boxes: _Boxes, script: _Script, call: _Call, alive: torch.Tensor) -> _Boxes:
    """Cut each box still alive `[N]` along the dimensions of one call: by the token drawn, or by where acceptance ends.

    A number that nothing depends on (that of a draft token without room, or behind a rejection) keeps its whole range.
    """
    rows, width = call.numbers.shape
    drafted = script.drafted[call.step] if call.step >= 0 else torch.ones(rows, dtype=torch.int64)
    if call.is_draw:
        assert call.faces is not None
        used = torch.tensor(call.in_verify) | (call.position < drafted)
        upper = torch.where(used[:, None], call.faces, torch.ones_like(call.faces))
        low, high = torch.nn.functional.pad(upper[:, :-1], (1, 0))[:, :, None], upper[:, :, None]  # [N, V, 1]
    else:
        keep = call.faces if call.faces is not None else torch.ones(rows, width, dtype=torch.float64)
        position = torch.arange(width)
        keep = torch.where(position < drafted[:, None], keep, torch.ones_like(keep))[:, None]
        ends = torch.arange(width + 1)[:, None]  # the first number that rejects; `width` if none does
        low = torch.where(position == ends, keep, torch.zeros_like(keep))  # [N, w+1, w]
        high = torch.where(position < ends, keep, torch.ones_like(keep))
    row, child = ((high > low).all(dim=2) & alive[:, None]).nonzero(as_tuple=True)
    return _Boxes(
        boxes.prompt[row],
        torch.cat([boxes.low[row], low[row, child]], dim=1),
        torch.cat([boxes.high[row], high[row, child]], dim=1),
    )
