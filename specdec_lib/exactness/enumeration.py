"""The law of what speculative decoding emits, computed without sampling, by running the decoding code on every path.

Decoding is a function of its table of random numbers. That function is constant on boxes: a draw gives the same token
while its number stays between two steps of the cumulative distribution, a draft token is kept while its number stays
below target/draft. So the law of the output is a sum of box volumes. Nothing about the rule has to be written down a
second time: the decoding code itself runs in every box, with a table out of that box.

`LookingOps` notes where the boxes end while the code runs in the middle of a box. This is then not trusted. The code
runs again at the lowest and at the highest corner of every box, where numbers that nothing was seen to depend on are at
their ends too. A number is decided by one threshold after another, so equal answers at both corners and in the middle
mean that the whole box answers alike. Boxes are first cut as the rule of Leviathan et al. needs it; those whose corners
disagree are cut along every number that was used. What disagrees even so is unexplained, such as the boxes of a rule
that computes with copies of its numbers.

The middle runs in plain PyTorch, and the host looks at no value. The corners run as any call does: on a CPU, passes are
no wider than the longest draft; where steps are captured, as replays; on the C++ kernels where they compute the target.
So a replay or a kernel that answers otherwise is unexplained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.decoding.draft_length import DraftLength
from specdec_lib.decoding.ops import CppOps, PlainOps, choose_ops
from specdec_lib.decoding.proposers.proposer import Drafting, Proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.uniforms import DRAWS_PER_STEP, draws_of_call
from specdec_lib.decoding.verification import Verify, verify
from specdec_lib.exactness.target_law import Law, total_variation
from specdec_lib.models.runner import LanguageModel

ROWS_AT_ONCE = 2**15
INSIDE = 1e-13  # how far from a face the corners are tried


@dataclass
class Enumeration:
    """What `enumerate_output` found."""

    laws: list[Law]  # of the emitted tokens, for each prompt
    unexplained: float = 0.0  # share of the volume in which the code does not always answer alike; 0 for a sound rule
    paths: int = 0  # boxes of positive volume, over all prompts

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


def enumerate_output(
    target: LanguageModel,
    proposer: Proposer,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    num_draft_tokens: int,
    sampling: SamplingConfig,
    verification: str | Verify = "token",
    draft_length: str | DraftLength = "fixed",
) -> Enumeration:
    """Compute the law of the tokens that `speculative_decode` emits after each prompt, for toys.

    What is left of the error is rounding: 1e-15 in float64. A row's logits must not depend on the other rows by more
    than `INSIDE`, so they are in float64, or of the kernels.

    Every path is a row of a ragged batch, so cache, rollback, bonus token and the next steps take part. The number of
    paths grows as (possible tokens) ** (draft and emitted tokens): a few tokens, a few draft tokens. Rules that end at
    the first test that fails take the fewest, as no later number matters to them; any other, and any proposer that
    looks ahead, is tried with every outcome of every test.
    """
    draws, width = draws_of_call(max_new_tokens), proposer.chains * num_draft_tokens + 1
    kernels = CppOps(sampling) if target.engine == "kernels" else None  # toys are too small to be given them otherwise
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_draft_tokens": num_draft_tokens}
    options |= {"verification": verification, "draft_length": draft_length}

    def decode(boxes: _Boxes, share: float, looking: LookingOps | None = None) -> DecodeResult:
        who = proposer if looking is None else _NeverCaptured(proposer)
        texts = [prompts[index] for index in boxes.prompt.tolist()]
        table = boxes.at(share).unflatten(1, (draws, width))  # [N, draws, gamma+1]
        given: dict[str, Any] = {"uniforms": table, "ops": looking or kernels}
        return speculative_decode(target, who, texts, sampling=sampling, **options, **given)

    found = Enumeration([{} for _ in prompts])
    numbers = torch.zeros(len(prompts), draws * width, dtype=torch.float64)
    every = verification not in ("token", verify) and not getattr(verification, "ends_at_first_failure", False)
    every = every or proposer.looks_ahead
    queue = [(_Boxes(torch.arange(len(prompts)), numbers, numbers + 1), frozenset[object](), every)]
    while queue:
        boxes, cut, fully = queue.pop()
        looking = LookingOps(sampling, kernels or choose_ops(target, sampling), draws, width, num_draft_tokens)
        result = decode(boxes, 0.5, looking)
        use = next((use for use in looking.uses if use.key not in cut), None)
        room = _room(result, use, max_new_tokens)
        if (ended := room == 0).any():
            leaves, middle = boxes.pick(ended), torch.stack(result.tokens)[ended]
            low, high = (torch.stack(decode(leaves, share).tokens) for share in (0.0, 1.0))
            alike = ((middle == low) & (middle == high)).all(dim=1)
            if not fully and not alike.all():
                queue.append((leaves.pick(~alike), frozenset(), True))
                leaves, middle, alike = leaves.pick(alike), middle[alike], alike[alike]
            _count(found, leaves, middle, alike)
        if use is not None:
            split = _split(boxes, use, room, None if fully else _matters(use, looking.uses, room))
            parts = torch.arange(len(split)).split(ROWS_AT_ONCE) if len(split) else ()
            queue += [(split.pick(rows), cut | {use.key}, fully) for rows in parts]
    return found


@dataclass
class _Boxes:
    """Boxes of tables of random numbers: `low` and `high` `[N, M]`, and the prompt that each continues `[N]`."""

    prompt: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __len__(self) -> int:
        return len(self.prompt)

    def pick(self, rows: torch.Tensor) -> _Boxes:
        return _Boxes(self.prompt[rows], self.low[rows], self.high[rows])

    def at(self, share: float) -> torch.Tensor:  # [N, M]
        """The point that lies at `share` of the way through each box, `INSIDE` off the faces at 0 and 1."""
        inside = ((self.high - self.low) / 4).clamp(max=INSIDE)
        return (self.low + inside) * (1 - share) + (self.high - inside) * share


@dataclass(frozen=True)
class _Use:
    """One use of random numbers: which they are, and where its outcome changes."""

    columns: tuple[int, ...]  # of the numbers in a row's table, all draws in one row
    edges: torch.Tensor  # of a draw of a token `[N, V]`, where each interval ends; of tests `[N, w]`, their chances
    passed: torch.Tensor | None  # `[N, w]`, the draft tokens that pass their test; None of a draw of a token
    width: int  # numbers of a draw in the table
    num_draft_tokens: int  # gamma
    nth: int  # how often these numbers were used before in this way

    @property
    def key(self) -> object:
        return self.columns, self.passed is None, self.nth

    @property
    def verifies(self) -> bool:
        """Whether it is of the draw that verifies, in a step."""
        draw = self.columns[0] // self.width
        return draw > 0 and draw % DRAWS_PER_STEP == 0

    @property
    def step(self) -> int:
        """Of decoding; -1 is the prefill."""
        return (self.columns[0] // self.width - 1) // DRAWS_PER_STEP


@dataclass(frozen=True)
class LookingOps(PlainOps):
    """Plain PyTorch that notes each use of the call's table of random numbers.

    Numbers are recognised by where a view lies in the table. A copy is not recognised: what depends on it is
    unexplained.

    Args:
        ops: what computes probabilities in this call.
        draws, width: of the table `[B, draws, width]`.
        num_draft_tokens: gamma.
    """

    ops: PlainOps
    draws: int
    width: int
    num_draft_tokens: int
    host_may_branch = False
    uses: list[_Use] = field(default_factory=list)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return self.ops.probabilities(logits)

    def accept(self, uniforms: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        passed = super().accept(uniforms, chance)
        edges = chance.double().nan_to_num(nan=1.0).clamp(0, 1)  # x/0: nothing was drafted, nothing depends on it
        self._note(uniforms, edges.reshape(len(uniforms), -1), (passed & chance.isfinite()).reshape(edges.shape[0], -1))
        return passed

    def invert(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        cumulative = weights.double().cumsum(dim=-1)
        edges = (cumulative / cumulative[..., -1:]).flatten(0, -2)
        edges[:, -1] = 1.0
        self._note(uniforms, edges, None)
        return super().invert(weights, uniforms)

    def _note(self, uniforms: torch.Tensor, edges: torch.Tensor, passed: torch.Tensor | None) -> None:
        numbers = self.draws * self.width
        if uniforms.stride(0) != numbers or uniforms.untyped_storage().nbytes() != 8 * numbers * len(uniforms):
            return  # no view of the table
        spacing = uniforms.stride(1) if uniforms.dim() == 2 else 0
        columns = tuple(int(uniforms.storage_offset()) + i * spacing for i in range(uniforms[0].numel()))
        nth = sum((use.columns, use.passed is None) == (columns, passed is None) for use in self.uses)
        outcome = None if passed is None else passed.cpu()
        self.uses.append(_Use(columns, edges.cpu(), outcome, self.width, self.num_draft_tokens, nth))


@dataclass(frozen=True)
class _NeverCaptured(Proposer):
    """The same proposer in steps that are not captured, so that each use of a number is seen."""

    proposer: Proposer

    @property
    def chains(self) -> int:  # type: ignore[override]
        return self.proposer.chains

    def start(self, call: Call) -> Drafting:
        return self.proposer.start(call)


def _room(result: DecodeResult, use: _Use | None, max_new_tokens: int) -> torch.Tensor:  # [N]
    """How many tokens each row may emit in the step of `use`; 0 where it had ended before, or there is no use left."""
    ones = torch.ones(len(result.tokens), dtype=torch.int64)
    if use is None or use.step < 0:
        return ones * (use is not None)
    emitted = torch.tensor(result.step_tokens[: use.step + 1])  # [steps, N]
    return (max_new_tokens - ones - emitted[:-1].sum(dim=0)) * (emitted[-1] > 0)


def _matters(use: _Use, uses: Sequence[_Use], room: torch.Tensor) -> torch.Tensor:  # [N, w]
    """Which numbers of `use` the rule of Leviathan et al. needs: those of tokens that a row has `room` `[N]` for."""
    tests = [other.passed for other in uses if other.step == use.step and other.passed is not None]
    if use.passed is None and use.verifies and tests:  # draws the token after those accepted
        return (tests[-1].long().cumprod(dim=1).sum(dim=1) < room)[:, None]
    position = torch.tensor(use.columns) % use.width
    position = position * (
        position < use.num_draft_tokens
    )  # the numbers after them are of a second chain's first token
    return position < room[:, None]


def _split(boxes: _Boxes, use: _Use, room: torch.Tensor, matters: torch.Tensor | None) -> _Boxes:
    """Cut each box with `room` `[N]` along the numbers of one use.

    Args:
        matters: `[N, w]`, the numbers along which boxes are cut: by the token drawn, or by the first test that fails.
            None cuts along all of them, and by the outcome of every test.
    """
    columns = torch.tensor(use.columns)
    edges = use.edges if matters is None else torch.where(matters, use.edges, torch.ones_like(use.edges))
    if use.passed is None:
        low, high = pad(edges[:, :-1], (1, 0))[:, :, None], edges[:, :, None]  # [N, V, 1]
    else:
        number, chance = torch.arange(len(columns)), edges[:, None]
        if matters is None:
            passes = (torch.arange(2 ** len(columns))[:, None] >> number & 1).bool()  # [2^w, w]
            fails = ~passes
        else:
            end = torch.arange(len(columns) + 1)[:, None]  # [w+1, 1]; w: none fails
            passes, fails = number < end, number == end
        low = torch.where(fails, chance, torch.zeros_like(chance))  # [N, children, w]
        high = torch.where(passes, chance, torch.ones_like(chance))
    low, high = low.maximum(boxes.low[:, None, columns]), high.minimum(boxes.high[:, None, columns])
    row, child = ((high > low).all(dim=2) & (room > 0)[:, None]).nonzero(as_tuple=True)
    split = boxes.pick(row)
    split.low[:, columns], split.high[:, columns] = low[row, child], high[row, child]
    return split


def _count(found: Enumeration, boxes: _Boxes, tokens: torch.Tensor, explained: torch.Tensor) -> None:
    volume = (boxes.high - boxes.low).prod(dim=1)
    found.paths += len(boxes)
    found.unexplained += float(volume[~explained].sum()) / len(found.laws)
    for prompt, sequence, mass in zip(boxes.prompt.tolist(), tokens.tolist(), volume.tolist(), strict=True):
        law = found.laws[prompt]
        law[tuple(sequence)] = law.get(tuple(sequence), 0.0) + mass
