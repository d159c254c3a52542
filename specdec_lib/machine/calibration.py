"""Short microbenchmarks of a machine: reading memory and multiplying matrices."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

from specdec_lib.machine.calibration_file import Calibration
from specdec_lib.machine.environment import device_name
from specdec_lib.machine.files import now
from specdec_lib.machine.stopwatch import Stopwatch, Timer
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.engines import kernels
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import ModelShape

MATRIX_ROWS = (*range(1, 17), 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)  # kernels work in blocks: their cost has steps
READ_BYTES = 2**28  # far more than any cache holds
REPEATS = 5
WARM_UP, TIMED = 2, 3  # runs of a piece in each: a pass follows its like, and finds what that left in the caches

Weight = tuple[torch.Tensor, ...]  # [N, K]; of 8 bits with its factors [N]
Multiply = Callable[..., torch.Tensor]  # [R, K] and a weight to [R, N]
Key = tuple[str, int]  # a piece: ("target", rows), ("draft", rows), ("read", 0)


@torch.inference_mode()
def calibrate(pair: Pair, watch: Stopwatch, rows: Sequence[int] = MATRIX_ROWS) -> Calibration:
    """Measure the machine that a pair lives on, with the target's weights as the matrices and these token counts.

    Every piece is timed five times, each time in another order.
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

    def per_weight(name: str, weights: Sequence[Weight]) -> tuple[float, ...]:
        count = sum(weight[0].numel() for weight in weights)
        return tuple(seconds[name, number] / count for number in rows)

    return Calibration(
        device_name=device_name(target.device.type),
        dtype=target.precision,
        measured=now(),
        read_bytes_per_second=READ_BYTES / seconds["read", 0],
        matrix_rows=tuple(rows),
        matrix_seconds_per_weight=per_weight("target", matrix_weights(target)),
        target=ModelShape.of(target),
        draft=ModelShape.of(pair.draft),
        draft_is_head=isinstance(pair.draft, DraftHead),
        draft_seconds_per_weight=per_weight("draft", of_draft),
        # Factors of 8-bit weights are not counted: there is one in a row.
        draft_bytes_per_weight=sum(each[0].nbytes for each in of_draft) / sum(each[0].numel() for each in of_draft),
        replayed=watch.graphs is not None,
    )


def matrix_weights(target: LanguageModel) -> list[Weight]:
    """The matrices `[N, K]` that every pass reads whole: those of the layers, and the output rows."""
    if isinstance(engine := target.active_engine, KernelEngine):
        return engine.matrices
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


def _timers(pair: Pair, watch: Stopwatch, rows: Sequence[int]) -> dict[Key, Timer]:
    target = pair.target
    multiply = kernels.linear if target.engine == "kernels" else linear
    pieces: dict[Key, Callable[[], object]] = {}
    for name, weights in (("target", matrix_weights(target)), ("draft", draft_weights(pair.draft))):
        pieces |= {(name, count): products(weights, multiply, count, target.dtype) for count in rows}
    pieces["read", 0] = torch.ones(READ_BYTES // 4, device=watch.device).sum
    return {key: watch.ready(piece) for key, piece in pieces.items()}


def products(weights: Sequence[Weight], multiply: Multiply, count: int, dtype: torch.dtype) -> Callable[[], None]:
    """All products of a pass over `count` tokens. Each is dropped at once, as in a pass: memory is used again."""
    widths = {weight[0].shape[1] for weight in weights}
    inputs = {width: torch.ones(count, width, dtype=dtype, device=weights[0][0].device) for width in widths}

    def run() -> None:
        for weight in weights:
            multiply(inputs[weight[0].shape[1]], *weight)

    return run
