"""Times pieces of a step as the rows of a sweep run them: by calling them, or by replaying a capture of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from specdec_lib.decoding.captured_loop import CudaGraphs

REPLAYS = 5  # one after another, as in a sweep, where the device never waits for the host

Timer = Callable[[], float]  # runs a piece, and returns its seconds


class Stopwatch:
    """Times pieces on a device: as replays of captures if there are `graphs`, else one operation after the other."""

    def __init__(self, device: torch.device, graphs: CudaGraphs | None = None):
        self.device, self.graphs = device, graphs

    def ready(self, piece: Callable[[], object]) -> Timer:
        """Prepare a piece, which finds whatever it reads as it was each time; RuntimeError if it cannot be captured."""
        if self.graphs is None:
            return lambda: self.seconds(piece)

        def step() -> None:
            piece()

        self.graphs.warm_up(step)
        replay = self.graphs.capture(step)

        def replays() -> None:
            for _ in range(REPLAYS):
                replay()

        return lambda: self.seconds(replays) / REPLAYS

    def seconds(self, call: Callable[[], object]) -> float:
        """How long `call` takes with the device idle before and after."""
        self._synchronise()
        started = time.perf_counter()
        call()
        self._synchronise()
        return time.perf_counter() - started

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
