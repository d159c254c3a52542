"""All that is specific to CUDA in decoding: capture a function in a graph, replay it, and hear from it."""

from __future__ import annotations

from collections.abc import Callable

import torch

Replay = Callable[[], None]


class CudaGraphs:
    """Graphs of one device that share a memory pool, so that they may not run at the same time.

    Nothing that outlives a replay may lie in that pool: what a step keeps, it writes into tensors made outside.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.forget()

    def forget(self) -> None:
        """Begin a new pool; the memory of the old one is free when its graphs are gone."""
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Callable[[], None]) -> None:
        """Run `step` as it will be captured: on another stream, where libraries make what they keep for a stream."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            step()
        current.wait_stream(self.stream)

    def capture(self, step: Callable[[], None]) -> Replay:
        """Record what `step` starts, without running it. Random numbers it must find in memory: none are made inside.

        Raises:
            RuntimeError: `step` does what a graph cannot hold, such as to wait for the device.
        """
        graph = torch.cuda.CUDAGraph()
        # Only calls of this thread count: the one that reads the device's counters goes on.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            step()
        return graph.replay

    def ask(self, report: torch.Tensor) -> Callable[[], list[int]]:
        """Start to copy `report` to the host; the function returned waits for that copy and nothing behind it."""
        copy = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        copy.copy_(report, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(report.device))

        def wait() -> list[int]:
            copied.synchronize()
            return copy.tolist()

        return wait
