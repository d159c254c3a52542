"""Short microbenchmarks of a machine: reading memory, multiplying matrices, attention, and starting an operation."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from specdec_lib.machine.calibration_file import Calibration
from specdec_lib.machine.environment import device_name
from specdec_lib.machine.files import now
from specdec_lib.machine.stopwatch import Stopwatch, Timer
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.engines import kernels
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import ModelShape

MATRIX_ROWS = (*range(1, 17), 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)  # kernels work in blocks: their cost has steps
READ_BYTES = 2**28  # far more than any cache holds
ATTENTION_BATCH = 8
ATTENTION_TOKENS = (1, 4)  # a pass of more tokens computes more and reads no more
ATTENTION_CONTEXTS = (64, 576)  # the difference is of more keys and values than any cache holds
ATTENTION_POSITIONS = ATTENTION_CONTEXTS[-1] + ATTENTION_TOKENS[-1]
REPEATS = 7
WARM_UP, TIMED = 2, 3  # runs of a piece in each: a pass follows its like, and finds what that left in the caches
CALLS = 300

Weight = tuple[torch.Tensor, ...]  # [N, K]; of 8 bits with its factors [N]
Multiply = Callable[..., torch.Tensor]  # [R, K] and a weight to [R, N]
Key = tuple[str, int, int]  # a piece: ("target", rows, 0), ("draft", rows, 0), ("pass", tokens, context), ...


@torch.inference_mode()
def calibrate(pair: Pair, watch: Stopwatch, rows: Sequence[int] = MATRIX_ROWS) -> Calibration:
    """Measure the machine that a pair lives on, with the target's weights as the matrices and these token counts.

    Every piece is timed seven times, each time in another order.
    """
    seen: dict[Key, list[float]] = defaultdict(list)
    timers = _timers(pair, watch, rows)
    for repeat in range(REPEATS):
        for name in random.Random(repeat).sample(list(timers), len(timers)):
            for _ in range(WARM_UP):
                timers[name]()
            seen[name].append(statistics.median(timers[name]() for _ in range(TIMED)))
    seconds = {name: statistics.geometric_mean(spent) for name, spent in seen.items()}  # as times of rows
    target, of_draft = pair.target, draft_weights(pair.draft)
    passes = {(key[1], key[2]): spent for key, spent in seconds.items() if key[0] == "pass"}

    def per_weight(name: str, weights: Sequence[Weight]) -> tuple[float, ...]:
        count = sum(weight[0].numel() for weight in weights)
        return tuple(seconds[name, number, 0] / count for number in rows)

    return Calibration(
        device_name=device_name(target.device.type),
        dtype=str(target.dtype).removeprefix("torch."),
        measured=now(),
        read_bytes_per_second=READ_BYTES / seconds["read", 0, 0],
        matrix_rows=tuple(rows),
        matrix_seconds_per_weight=per_weight("target", matrix_weights(target)),
        call_seconds=seconds["call", 0, 0] / CALLS,
        calls_per_pass=calls_per_pass(target),
        target=ModelShape.of(target),
        draft=ModelShape.of(pair.draft),
        draft_is_head=isinstance(pair.draft, DraftHead),
        draft_seconds_per_weight=per_weight("draft", of_draft),
        # Factors of 8-bit weights are not counted: there is one in a row.
        draft_bytes_per_weight=sum(each[0].nbytes for each in of_draft) / sum(each[0].numel() for each in of_draft),
        replayed=watch.graphs is not None,
        **attention_rates(target, passes),
    )


def attention_rates(target: LanguageModel, seconds: dict[tuple[int, int], float]) -> dict[str, Any]:
    """The rates from how much longer passes of one token and of several take at a longer context, or why none.

    Products and everything else that does not depend on the context cancel in the differences.

    Args:
        seconds: of a pass, by its number of tokens and its context; empty for a model without so many positions.
    """
    if not seconds:
        return {"attention_missing": f"the model has no {ATTENTION_POSITIONS} positions"}
    short, long = ATTENTION_CONTEXTS
    few, many = ATTENTION_TOKENS
    shape, longer = ModelShape.of(target), ATTENTION_BATCH * (long - short)
    one, several = (seconds[tokens, long] - seconds[tokens, short] for tokens in ATTENTION_TOKENS)
    computing = (several - one) / (many - few)  # of one token in each row
    reading = one - few * computing
    if min(computing, reading) <= 0:
        return {"attention_missing": "lost in the noise of everything else that a pass does"}
    read = longer * shape.key_values_per_token() * target.dtype.itemsize
    computed = shape.attention_operations(longer)
    return {"cache_bytes_per_second": read / reading, "attention_operations_per_second": computed / computing}


def matrix_weights(target: LanguageModel) -> list[Weight]:
    """The matrices `[N, K]` that every pass reads whole: those of the layers, and the output rows."""
    head = target.head.weight
    layers = [
        w for name, w in target.model.named_parameters() if w.dim() == 2 and "embed" not in name and w is not head
    ]
    return [(weight.data,) for weight in [*layers, head]]


def draft_weights(draft: LanguageModel | DraftHead) -> list[Weight]:
    """The same of a draft, as it multiplies with them; also the output rows that a head shares with its target."""
    if isinstance(draft, LanguageModel):
        return matrix_weights(draft)
    if draft.fused is not None:
        return draft.fused.matrices
    return [*((weight.data,) for weight in draft.parameters() if weight.dim() == 2), (draft.output_rows,)]


class _CallCounter(TorchDispatchMode):
    """Counts operations that compute; views cost next to nothing."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not getattr(func, "is_view", False)
        return func(*args, **(kwargs or {}))


def calls_per_pass(target: LanguageModel) -> int:
    """How many operations one pass over one token starts."""
    cache, token = target.new_cache(1, 8), torch.zeros(1, 1, dtype=torch.int64, device=target.device)
    with _CallCounter() as counter:
        target.logits(target.forward(token, cache).hidden)
    return counter.calls


def _timers(pair: Pair, watch: Stopwatch, rows: Sequence[int]) -> dict[Key, Timer]:
    target = pair.target
    multiply = kernels.linear if target.engine == "kernels" else linear
    pieces: dict[Key, Callable[[], object]] = {}
    for name, weights in (("target", matrix_weights(target)), ("draft", draft_weights(pair.draft))):
        pieces |= {(name, count, 0): products(weights, multiply, count, target.dtype) for count in rows}
    few = torch.ones(1, target.hidden_size, dtype=target.dtype, device=watch.device)

    def many_calls() -> None:  # each waits for the one before
        for _ in range(CALLS):
            torch.add(few, few)

    pieces |= {("read", 0, 0): torch.ones(READ_BYTES // 4, device=watch.device).sum, ("call", 0, 0): many_calls}
    if target.context_length >= ATTENTION_POSITIONS:
        cache = target.new_cache(ATTENTION_BATCH, ATTENTION_POSITIONS)
        for tokens, context in itertools.product(ATTENTION_TOKENS, ATTENTION_CONTEXTS):
            ids = torch.zeros(ATTENTION_BATCH, tokens, dtype=torch.int64, device=target.device)
            lengths = torch.full_like(cache.lengths, context)
            pieces["pass", tokens, context] = partial(_pass_at, target, cache, ids, lengths, context)
    return {key: watch.ready(piece) for key, piece in pieces.items()}


def _pass_at(
    target: LanguageModel, cache: RaggedStaticCache, ids: torch.Tensor, lengths: torch.Tensor, context: int
) -> None:
    cache.set_lengths(lengths, context)
    target.logits(target.forward(ids, cache).hidden)


def products(weights: Sequence[Weight], multiply: Multiply, count: int, dtype: torch.dtype) -> Callable[[], None]:
    """All products of a pass over `count` tokens. Each is dropped at once, as in a pass: memory is used again."""
    widths = {weight[0].shape[1] for weight in weights}
    inputs = {width: torch.ones(count, width, dtype=dtype, device=weights[0][0].device) for width in widths}

    def run() -> None:
        for weight in weights:
            multiply(inputs[weight[0].shape[1]], *weight)

    return run
