"""Kernels of our own compared with the plain operations that they stand for, on inputs made to part the two.

Probabilities may differ by rounding, and in nothing else. Given the same numbers, tokens drawn and accepted are the
same, and so is what is appended and counted. A row's result has the same bits whatever the other rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.verification import Verification
from specdec_lib.methods import RULES
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.toy import ToyModel

TEMPERATURES = (0.0, 1e-9, 0.7, 1.0)
ALMOST_ONE = 1 - 2**-53
GAMMA = 3
APPENDED = 8  # random steps

MakeOps = Callable[[SamplingConfig], PlainOps]
Check = Callable[[MakeOps, torch.device, int, int], Iterator[str]]


def differences(make_ops: MakeOps, device: torch.device, vocab_size: int, batch: int) -> list[str]:
    """How these operations differ from the plain ones, a line for each kind of input; empty if in nothing.

    Args:
        make_ops: the operations of a `SamplingConfig`, such as the class `TritonOps`.
        vocab_size: at least 100 tokens.
        batch: at least 2 rows of each kind of input.
    """
    return [line for check in CHECKS.values() for line in check(make_ops, device, vocab_size, batch)]


def of_probabilities(make_ops: MakeOps, device: torch.device, vocab_size: int, batch: int) -> Iterator[str]:
    """How probabilities differ, also in precision, and whether they depend on the other rows."""
    for (name, logits), temperature in product(_logits(_seeded(), batch, vocab_size), TEMPERATURES):
        sampling, logits = SamplingConfig(temperature=temperature), logits.to(device)
        ours, here = make_ops(sampling).probabilities(logits), f"{name} at temperature {temperature:g}"
        expected = PlainOps(sampling).probabilities(logits.double())  # so that rounding of its own does not count
        if temperature == 0:
            yield from _unequal(
                f"probabilities of {here}", ours.nan_to_num(2.0), expected.to(ours.dtype).nan_to_num(2.0)
            )
        elif not torch.allclose(ours.double(), expected, rtol=1e-5, atol=1e-9, equal_nan=True):
            yield f"probabilities of {here}: {float((ours - expected).abs().max()):.2g} off"
        if ours.dtype != PlainOps(sampling).probabilities(logits[:1]).dtype:
            yield f"probabilities of {here} are {ours.dtype}"
        if not torch.equal(make_ops(sampling).probabilities(logits[1, 0]), ours[1, 0]):
            yield f"probabilities of {here} depend on the other rows"


def of_draws(make_ops: MakeOps, device: torch.device, vocab_size: int, batch: int) -> Iterator[str]:
    """How drawn tokens differ, and whether they depend on the other rows."""
    ours, plain = (make(SamplingConfig()) for make in (make_ops, PlainOps))
    for name, *tensors in _draws(_seeded(), batch, vocab_size):
        weights, uniforms = (tensor.to(device) for tensor in tensors)
        drawn = ours.invert(weights, uniforms)
        yield from _unequal(f"tokens drawn from {name}", drawn, plain.invert(weights, uniforms))
        if not torch.equal(ours.invert(weights[-1:], uniforms[-1:]), drawn[-1:]):
            yield f"a token drawn from {name} depends on the other rows"


def of_verification(make_ops: MakeOps, device: torch.device, vocab_size: int, batch: int) -> Iterator[str]:
    """How the decisions of token verification differ."""
    verify, expected = (make(SamplingConfig()).verification(RULES["token"]) for make in (make_ops, PlainOps))
    for name, *tensors in _verifications(_seeded(), batch, vocab_size):
        given = [tensor.to(device) for tensor in tensors]
        for what, here, there in zip(("tokens accepted", "next tokens"), verify(*given), expected(*given), strict=True):
            yield from _unequal(f"{what} where {name}", here, there)


def _unequal(what: str, ours: Tensor, plain: Tensor) -> list[str]:
    """A line if two tensors differ in shape, type or value."""
    if (ours.shape, ours.dtype) != (plain.shape, plain.dtype):
        return [f"{what}: {ours.dtype} {tuple(ours.shape)}, plain {plain.dtype} {tuple(plain.shape)}"]
    wrong = int((ours != plain).sum())
    return [f"{what}: {wrong} of {ours.numel()} differ"] if wrong else []


def _logits(generator: torch.Generator, batch: int, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    """Logits `[batch, 2, V]` by what is difficult about them."""
    logits = 5 * torch.randn(batch, 2, vocab_size, generator=generator)
    yield "random logits", logits
    yield "bfloat16 logits", logits.bfloat16()  # many are equal
    yield "float64 logits", logits.double()
    yield "a view of wider logits", torch.cat([logits, logits], dim=-1)[..., :vocab_size]
    yield "equal logits", torch.full_like(logits, 3.0)
    tied = logits.clone()
    tied[..., vocab_size // 2 :] = 40.0
    yield "half of the logits largest", tied
    excluded = logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.9, float("-inf"))
    excluded[..., vocab_size // 3] = 0.0
    yield "-inf among the logits", excluded
    single = torch.full_like(logits, float("-inf"))
    single[..., -1] = -7.0
    yield "one token possible", single
    spoiled = logits.clone()
    spoiled[0, 0, vocab_size - 2], spoiled[-1, 1, 0] = float("nan"), float("inf")
    spoiled[0, 1] = float("-inf")
    yield "NaN, inf and nothing but -inf in three rows", spoiled


def _draws(generator: torch.Generator, batch: int, vocab_size: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Weights `[batch, V]` and numbers to draw with."""
    uniforms = torch.rand(batch, generator=generator, dtype=torch.float64)
    uniforms[0], uniforms[-1] = 0.0, ALMOST_ONE
    peaked = distributions(generator, batch, vocab_size)
    yield "peaked rows", peaked, uniforms
    yield "float64 rows", peaked.double() * 3.0, uniforms
    yield "rows of zeros", torch.zeros(batch, vocab_size), uniforms
    yield "equal weights", torch.ones(batch, vocab_size), uniforms
    places = torch.arange(batch) * 7919 % vocab_size
    one_hot = torch.nn.functional.one_hot(places, vocab_size).float()
    yield "one-hots", one_hot, uniforms
    yield "one-hots that weigh 1e-40", one_hot * 1e-40, uniforms
    ends = torch.zeros(batch, vocab_size)
    ends[:, 0] = ends[:, -1] = 0.5
    yield "the first and the last token", ends, torch.where(torch.arange(batch) % 2 == 0, 0.5, uniforms)


def distributions(generator: torch.Generator, *shape: int) -> Tensor:
    """Peaked rows with many zeros, as sampling makes them."""
    logits = 4 * torch.randn(*shape, generator=generator)
    logits[..., 1] = 3.0
    return torch.softmax(logits.masked_fill(logits < 2, float("-inf")), dim=-1)


def _verifications(generator: torch.Generator, batch: int, vocab_size: int) -> Iterator[tuple[Any, ...]]:
    """target_probs, draft_probs, draft_tokens and uniforms, by what is difficult about them."""
    target = distributions(generator, batch, GAMMA + 1, vocab_size)
    draft = 0.5 * distributions(generator, batch, GAMMA, vocab_size) + 0.5 * target[:, :-1]
    tokens = draft.flatten(0, 1).multinomial(1, generator=generator).view(batch, GAMMA)
    uniforms = torch.rand(batch, GAMMA + 1, generator=generator, dtype=torch.float64)
    table = torch.stack([uniforms, uniforms], dim=1)[:, 1]  # a draw of a table
    yield "the draft is near the target", target, draft, tokens, table
    yield "nothing was drafted", target, draft * 0, target[:, :-1].argmax(dim=-1), uniforms * 0
    yield "there is no draft", target[:, :1], draft[:, :0], tokens[:, :0], uniforms[:, -1:]
    some = draft.clone()
    some[:, 1:] = 0
    yield "one token was drafted", target, some, tokens, uniforms
    certain = uniforms.clone()
    certain[:, :-1] = ALMOST_ONE
    yield "the draft is the target", target, target[:, :-1], target[:, :-1].argmax(dim=-1), certain
    yield "numbers are 0", target, draft, tokens, uniforms * 0
    one_hots = torch.nn.functional.one_hot(tokens, vocab_size).float()
    yield "the draft is a one-hot", target, one_hots, tokens, uniforms
    less = target.clone()
    less[:, :-1] = one_hots * 0.75  # as if rounding rejected: all of the residual is 0
    yield "nothing is left of the target", less, one_hots, tokens, torch.full_like(uniforms, 0.9)
    never = target.clone()
    never[:, :-1].scatter_(2, tokens[:, :, None], 0.0)
    yield "the target never emits the draft, numbers are 0", never, draft, tokens, uniforms * 0
    half = torch.zeros_like(target)
    half[:, :, 0] = half[:, :, -1] = 0.5
    sure = torch.zeros_like(draft)
    sure[:, :, -1] = 1.0
    last = torch.full_like(tokens, vocab_size - 1)
    yield "a number is the chance itself", half, sure, last, torch.full_like(uniforms, 0.5)


def of_ends(make_ops: MakeOps, device: torch.device, vocab_size: int, batch: int) -> Iterator[str]:
    """How what is appended, counted and reported differs, over random steps of ragged rows of a toy."""
    generator, both = _seeded(), [make(SamplingConfig()) for make in (make_ops, PlainOps)]
    for stops, counted, step in product(((), (7,), (8, 7)), (True, False), range(APPENDED)):
        drafted = step % (GAMMA + 1)
        tokens = torch.randint(5, 12, (5, drafted), generator=generator)
        probs = torch.rand(5, drafted, 1, generator=generator).round().repeat(1, 1, 16)  # half: nothing was drafted
        target_probs = torch.full((5, drafted + 1, 16), 0.5)
        accepted = torch.randint(drafted + 1, (5,), generator=generator)
        following = torch.randint(5, 12, (5,), generator=generator)
        if step == 5:
            probs[4, -1] = float("nan")
        if step == 6:
            target_probs[3, -1] = float("nan")
        tokens, probs, target_probs = (tensor.to(device) for tensor in (tokens, probs, target_probs))
        chosen = Verification(accepted.to(device), following.to(device))
        outcomes = []
        for ops in both:
            rows, counters = _rows_in_flight(device, stops)
            for _ in range(2):
                ops.append(rows, counters if counted else None, tokens, probs, target_probs, chosen)
            state = rows.lengths, rows.done, rows.num_emitted, rows.num_tested, counters.counts, rows.report
            outcomes.append([tensor.tolist() for tensor in (rows.tokens, rows.saw_nan, *state)])
        if outcomes[0] != outcomes[1]:
            yield f"a step with {drafted} draft tokens, {len(stops)} stop tokens, counted: {counted}, ends otherwise"


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _rows_in_flight(device: torch.device, stops: tuple[int, ...]) -> tuple[Rows, Counters]:
    """Rows of which one is done, two are about to be, and the others have room."""
    toy = LanguageModel(ToyModel(torch.zeros(16, 16, 16, device=device)), "toy")
    rows = Rows(toy, batch_size=5, capacity=32, width=GAMMA + 1, num_stops=len(stops))
    rows.fill([torch.arange(1, 3 + row) for row in range(5)], 9, stops)
    rows.lengths += torch.tensor([9, 8, 7, 0, 0], device=device)
    rows.done[0] = True
    return rows, Counters(GAMMA, device)


CHECKS: dict[str, Check] = {
    "probabilities": of_probabilities,
    "draws": of_draws,
    "verification": of_verification,
    "ends of steps": of_ends,
}
