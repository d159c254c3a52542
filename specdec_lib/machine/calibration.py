"""Short microbenchmarks of a machine: reading memory, multiplying matrices, attention, and starting an operation."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from specdec_lib.machine.calibration_file import Calibration
from specdec_lib.machine.environment import device_name, now
from specdec_lib.machine.stopwatch import Rounds, Stopwatch, Timer, timed_as_run
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.engines import kernels as fused
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import ModelShape

MATRIX_ROWS = (*range(1, 17), 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)  # kernels work in blocks: their cost has steps
READ_BYTES = 2**28  # far more than any cache holds
ATTENTION_BATCH = 8
ATTENTION_TOKENS = (1, 4)  # a pass of more tokens computes more and reads no more
ATTENTION_CONTEXTS = (64, 576)  # the difference is of more keys and values than any cache holds
REPEATS = 7
WARM_UP, TIMED = 2, 3  # runs of a piece in each: a pass follows its like, and finds what that left in the caches
CALLS = 300

K = TypeVar("K")
Weight = tuple[torch.Tensor, ...]  # [N, K]; of 8 bits with its factors [N]
Multiply = Callable[..., torch.Tensor]  # [R, K] and a weight to [R, N]


def calibrate(pair: Pair, rows: Sequence[int] = MATRIX_ROWS) -> Calibration:
    """Measure the machine that a pair lives on, with the target's weights as the matrices, in seven rounds.

    Args:
        rows: token counts to multiply with.
    """
    return timed_as_run(pair.target, lambda watch: calibration_in_rounds(pair, watch, rows).whole())


def calibration_in_rounds(pair: Pair, watch: Stopwatch, rows: Sequence[int] = MATRIX_ROWS) -> Rounds[Calibration]:
    """The same, to be taken round by round, with other work in between."""
    target = pair.target
    multiply = linear if target.fused is None else fused.linear
    weights, of_draft = [(weight,) for weight in matrix_weights(target)], draft_weights(pair.draft)
    matrix = _Repeated(lambda: _matrix_timers(weights, multiply, rows, target.dtype, watch), watch)
    drafting = _Repeated(lambda: _matrix_timers(of_draft, multiply, rows, target.dtype, watch), watch)
    reading = _Repeated(lambda: _read_timer(watch), watch)
    calls = _Repeated(lambda: _call_timer(target, watch), watch)
    attention = _Repeated(lambda: _pass_timers(target, watch), watch)
    missing = missing_attention(target)

    @torch.inference_mode()
    def result() -> Calibration:
        rates = attention_rates(target, attention.seconds(), missing)
        return Calibration(
            device_name=device_name(target.device.type),
            dtype=str(target.dtype).removeprefix("torch."),
            measured=now(),
            read_bytes_per_second=READ_BYTES / reading.seconds()[""],
            matrix_rows=tuple(rows),
            matrix_seconds_per_weight=_per_weight(matrix.seconds(), rows, weights),
            call_seconds=calls.seconds()[""] / CALLS,
            calls_per_pass=calls_per_pass(target),
            target=ModelShape.of(target),
            draft=ModelShape.of(pair.draft),
            draft_is_head=isinstance(pair.draft, DraftHead),
            draft_seconds_per_weight=_per_weight(drafting.seconds(), rows, of_draft),
            draft_bytes_per_weight=bytes_per_weight(of_draft),
            cache_bytes_per_second=rates.cache_bytes_per_second,
            attention_operations_per_second=rates.operations_per_second,
            attention_missing=rates.missing,
            replayed=watch.graphs is not None,
        )

    pieces: list[_Repeated[Any]] = [matrix, drafting, reading, calls, *([] if missing else [attention])]
    return Rounds([*itertools.chain(*zip(*(piece.rounds for piece in pieces), strict=True))], result)


class AttentionRates(NamedTuple):
    """How fast attention reads what is cached, and computes with it; or why that is not known."""

    cache_bytes_per_second: float | None
    operations_per_second: float | None
    missing: str | None = None


def attention_rates(
    target: LanguageModel, seconds: dict[tuple[int, int], float], missing: str | None = None
) -> AttentionRates:
    """The rates from how much longer passes of one token and of several take behind a longer context.

    Products and everything else that does not depend on the context cancel in the differences.

    Args:
        seconds: of a pass, by its number of tokens and its context.
        missing: why there are none.
    """
    if missing:
        return AttentionRates(None, None, missing)
    short, long = ATTENTION_CONTEXTS
    few, many = ATTENTION_TOKENS
    shape, longer = ModelShape.of(target), ATTENTION_BATCH * (long - short)
    one, several = (seconds[tokens, long] - seconds[tokens, short] for tokens in ATTENTION_TOKENS)
    computing = (several - one) / (many - few)  # of one token in each row
    reading = one - few * computing
    if min(computing, reading) <= 0:
        return AttentionRates(None, None, "lost in the noise of everything else that a pass does")
    read = longer * shape.key_values_per_token() * target.dtype.itemsize
    return AttentionRates(read / reading, shape.attention_operations(longer) / computing)


def missing_attention(target: LanguageModel) -> str | None:
    """Why attention cannot be timed, if so."""
    positions = ATTENTION_CONTEXTS[-1] + ATTENTION_TOKENS[-1]
    return f"the model has no {positions} positions" if target.context_length < positions else None


def matrix_weights(target: LanguageModel) -> list[torch.Tensor]:
    """The matrices `[N, K]` that every pass reads whole: those of the layers, and the output rows."""
    head = target.head.weight
    layers = [
        w for name, w in target.model.named_parameters() if w.dim() == 2 and "embed" not in name and w is not head
    ]
    return [weight.data for weight in [*layers, head]]


def draft_weights(draft: LanguageModel | DraftHead) -> list[Weight]:
    """The same of a draft, as it multiplies with them; also the output rows that a head shares with its target."""
    if isinstance(draft, LanguageModel):
        return [(weight,) for weight in matrix_weights(draft)]
    if draft.fused is not None:
        return draft.fused.matrices
    return [*((weight.data,) for weight in draft.parameters() if weight.dim() == 2), (draft.output_rows,)]


def bytes_per_weight(weights: Sequence[Weight]) -> float:
    """Factors are not counted: there is one in a row."""
    return sum(weight[0].nbytes for weight in weights) / sum(weight[0].numel() for weight in weights)


def calls_per_pass(target: LanguageModel) -> int:
    """How many operations one pass over one token starts."""
    cache = target.new_cache(1, 8)
    token = torch.zeros(1, 1, dtype=torch.int64, device=target.device)
    with _CallCounter() as counter:
        _pass(target, token, cache)
    return counter.calls


class _CallCounter(TorchDispatchMode):
    """Counts operations that compute; views cost next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not getattr(func, "is_view", False)
        return func(*args, **(kwargs or {}))


def _pass_timers(target: LanguageModel, watch: Stopwatch) -> dict[tuple[int, int], Timer]:
    """Passes by their number of tokens and their context."""
    cache = target.new_cache(ATTENTION_BATCH, ATTENTION_CONTEXTS[-1] + ATTENTION_TOKENS[-1])

    def pass_behind(ids: torch.Tensor, lengths: torch.Tensor, context: int) -> None:
        cache.set_lengths(lengths, context)
        _pass(target, ids, cache)

    timers: dict[tuple[int, int], Timer] = {}
    for tokens, context in itertools.product(ATTENTION_TOKENS, ATTENTION_CONTEXTS):
        ids = torch.zeros(ATTENTION_BATCH, tokens, dtype=torch.int64, device=target.device)
        lengths = torch.full_like(cache.lengths, context)
        timers[tokens, context] = watch.ready(partial(pass_behind, ids, lengths, context))
    return timers


def _pass(target: LanguageModel, tokens: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:
    return target.logits(target.forward(tokens, cache).hidden)


def _matrix_timers(
    weights: Sequence[Weight], multiply: Multiply, rows: Sequence[int], dtype: torch.dtype, watch: Stopwatch
) -> dict[int, Timer]:
    """All products of a pass over each number of rows."""

    def products(inputs: dict[int, torch.Tensor]) -> None:
        for weight in weights:
            multiply(inputs[weight[0].shape[1]], *weight)  # dropped at once: 128 rows of all are 100 MB of new pages

    def ones(count: int) -> dict[int, torch.Tensor]:
        widths = {weight[0].shape[1] for weight in weights}
        return {width: torch.ones(count, width, dtype=dtype, device=watch.device) for width in widths}

    return {count: watch.ready(partial(products, ones(count))) for count in rows}


def _per_weight(seconds: dict[int, float], rows: Sequence[int], weights: Sequence[Weight]) -> tuple[float, ...]:
    count = sum(weight[0].numel() for weight in weights)
    return tuple(seconds[number] / count for number in rows)


def _read_timer(watch: Stopwatch) -> dict[str, Timer]:
    buffer = torch.ones(READ_BYTES // 4, device=watch.device)
    return {"": watch.ready(buffer.sum)}


def _call_timer(target: LanguageModel, watch: Stopwatch) -> dict[str, Timer]:
    """The time between starts of many small additions, each waiting for the one before."""
    x = torch.ones(1, target.hidden_size, dtype=target.dtype, device=target.device)

    def many() -> None:
        for _ in range(CALLS):
            torch.add(x, x)

    return {"": watch.ready(many)}


class _Repeated(Generic[K]):
    """Pieces that are timed `REPEATS` times: each time all of them, in an order of its own.

    What pieces work on is made for each time and dropped behind it, except where making it means capturing it.
    """

    def __init__(self, make: Callable[[], dict[K, Timer]], watch: Stopwatch):
        self.make = make
        self.seen: dict[K, list[float]] = defaultdict(list)
        times = [range(REPEATS)] if watch.graphs is not None else [range(n, n + 1) for n in range(REPEATS)]
        self.rounds = [partial(self._time, repeats) for repeats in times]

    @torch.inference_mode()
    def _time(self, repeats: range) -> None:
        timers = self.make()
        for repeat in repeats:
            for name in random.Random(repeat).sample(list(timers), len(timers)):
                for _ in range(WARM_UP):
                    timers[name]()
                self.seen[name].append(statistics.median(timers[name]() for _ in range(TIMED)))

    def seconds(self) -> dict[K, float]:
        """Of each piece the geometric mean, as the times of rows are averaged."""
        return {name: statistics.geometric_mean(spent) for name, spent in self.seen.items()}
