"""Three short microbenchmarks of a machine: how fast it reads memory, multiplies matrices, and starts an operation."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from specdec_lib.measure.environment import device_name, now
from specdec_lib.measure.results import write_at_once
from specdec_lib.models import fused
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import ModelShape

MATRIX_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
READ_BYTES = 2**28  # far more than any cache holds
REPEATS = 7
CALLS = 300
FILE = "calibration.json"

Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # [R, K], [N, K] to [R, N]


@dataclass(frozen=True)
class Calibration:
    """What a machine was measured to do, in seconds and bytes; medians of interleaved repetitions."""

    device_name: str
    dtype: str
    measured: str  # when
    read_bytes_per_second: float  # one pass over a buffer that no cache holds
    matrix_rows: tuple[int, ...]
    matrix_seconds_per_weight: tuple[float, ...]  # for that many rows, over the target's own weights in turn
    call_seconds: float  # an operation too small to cost anything but its start
    calls_per_pass: int  # operations that one pass of the target starts
    target: ModelShape
    draft: ModelShape
    draft_is_head: bool  # on the target's hidden states: its first pass reads all that the target verified


def calibrate(pair: Pair, rows: Sequence[int] = MATRIX_ROWS) -> Calibration:
    """Measure the machine that a pair lives on, with the target's weights as the matrices; a few seconds.

    Args:
        rows: token counts to multiply with.
    """
    target = pair.target
    multiply = linear if target.fused is None else fused.linear
    weights = matrix_weights(target)
    count = sum(weight.numel() for weight in weights)
    matrix = _matrix_seconds(weights, multiply, rows)
    return Calibration(
        device_name=device_name(target.device.type),
        dtype=str(target.dtype).removeprefix("torch."),
        measured=now(),
        read_bytes_per_second=_read_rate(target.device),
        matrix_rows=tuple(rows),
        matrix_seconds_per_weight=tuple(seconds / count for seconds in matrix),
        call_seconds=_call_seconds(target),
        calls_per_pass=calls_per_pass(target),
        target=ModelShape.of(target),
        draft=ModelShape.of(pair.draft),
        draft_is_head=isinstance(pair.draft, DraftHead),
    )


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write `calibration.json` into a run's folder."""
    text = json.dumps({"evidence": "measured", **asdict(calibration)}, indent=1)
    write_at_once(Path(folder) / FILE, text + "\n")


def read_calibration(folder: Path) -> Calibration:
    """What `write_calibration` wrote.

    Raises:
        ValueError: there is none yet, or one of an earlier version.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: run the study first, with make run GPU=<name>")
    facts = json.loads(path.read_text(encoding="utf-8"))
    if "draft_is_head" not in facts:
        raise ValueError(f"{path} does not say whether the draft is a head: delete it and run the study again")
    del facts["evidence"]
    lists = {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
    shapes = {name: ModelShape(**facts[name]) for name in ("target", "draft")}
    return Calibration(**facts | lists | shapes)


def matrix_weights(target: LanguageModel) -> list[torch.Tensor]:
    """The matrices `[N, K]` that every pass reads whole: those of the layers, and the output rows."""
    head = target.head.weight
    layers = [
        w for name, w in target.model.named_parameters() if w.dim() == 2 and "embed" not in name and w is not head
    ]
    return [weight.data for weight in [*layers, head]]


def calls_per_pass(target: LanguageModel) -> int:
    """How many operations one pass over one token starts."""
    cache = target.new_cache(1, 8)
    token = torch.zeros(1, 1, dtype=torch.int64, device=target.device)
    with _CallCounter() as counter:
        target.logits(target.forward(token, cache).hidden)
    return counter.calls


class _CallCounter(TorchDispatchMode):
    """Counts operations that compute; views cost next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not getattr(func, "is_view", False)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def _matrix_seconds(weights: list[torch.Tensor], multiply: Multiply, rows: Sequence[int]) -> list[float]:
    def pass_over(count: int) -> float:
        inputs = {k: torch.ones(count, k, dtype=weights[0].dtype, device=weights[0].device) for k in widths}
        return _seconds(weights[0].device, lambda: [multiply(inputs[w.shape[1]], w) for w in weights])

    widths = {weight.shape[1] for weight in weights}
    for count in rows:
        pass_over(count)
    seen: dict[int, list[float]] = {count: [] for count in rows}
    for repeat in range(REPEATS):
        for count in random.Random(repeat).sample(list(rows), len(rows)):
            seen[count].append(pass_over(count))
    return [statistics.median(seconds) for seconds in seen.values()]


def _read_rate(device: torch.device) -> float:
    buffer = torch.ones(READ_BYTES // 4, device=device)
    seconds = [_seconds(device, buffer.sum) for _ in range(REPEATS + 1)]
    return READ_BYTES / statistics.median(seconds[1:])


@torch.inference_mode()
def _call_seconds(target: LanguageModel) -> float:
    """The time between starts of many small additions, each waiting for the one before."""
    x = torch.ones(1, target.hidden_size, dtype=target.dtype, device=target.device)

    def many() -> None:
        for _ in range(CALLS):
            torch.add(x, x)

    return statistics.median([_seconds(target.device, many) for _ in range(REPEATS + 1)][1:]) / CALLS


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
