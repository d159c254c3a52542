"""Times pieces of a step as the rows of a sweep run them: by calling them, or by replaying a capture of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from specdec_lib.decoding.captured_loop import CudaGraphs, new_graphs
from specdec_lib.models.runner import LanguageModel

REPLAYS = 5  # one after another, as in a sweep, where the device never waits for the host

T = TypeVar("T")
Timer = Callable[[], float]  # runs a piece, and returns its seconds


@dataclass(frozen=True)
class Rounds(Generic[T]):
    """A measurement in rounds of seconds, between which other work may run; then there is a result."""

    rounds: list[Callable[[], None]]
    result: Callable[[], T]

    def whole(self) -> T:
        """All of it at once."""
        for one in self.rounds:
            one()
        return self.result()


class CaptureError(Exception):
    """A piece cannot be captured, and why."""


class Stopwatch:
    """Times pieces on a device.

    Args:
        graphs: to capture pieces with; with None they are called, one operation after the other.
    """

    def __init__(self, device: torch.device, graphs: CudaGraphs | None = None):
        self.device, self.graphs = device, graphs

    def ready(self, piece: Callable[[], object]) -> Timer:
        """Prepare a piece, which finds whatever it reads as it was each time.

        Raises:
            CaptureError: it is to be captured, and cannot be.
        """
        if self.graphs is None:
            return lambda: seconds(self.device, piece)

        def step() -> None:
            piece()

        try:
            self.graphs.warm_up(step)
            replay = self.graphs.capture(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(str(error).strip().splitlines()[0]) from error

        def replays() -> None:
            for _ in range(REPLAYS):
                replay()

        return lambda: seconds(self.device, replays) / REPLAYS


def timed_as_run(target: LanguageModel, measure: Callable[[Stopwatch], T]) -> T:
    """`measure` pieces as the steps of `target` are run; by calling all of them if one cannot be captured."""
    graphs = new_graphs(target)
    try:
        return measure(Stopwatch(target.device, graphs))
    except CaptureError as error:
        print(f"pieces of a step are timed by calling them, since one cannot be captured: {error}", flush=True)
        return measure(Stopwatch(target.device))


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """How long `call` takes with the device idle before and after."""
    _synchronise(device)
    started = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
