"""Run the steps of a call as replays of CUDA graphs.

A step is a few thousand kernels, which take longer to start one by one than to run. So the first step of a kind is run
and then captured, and later ones are replays of the whole step.

Replaying needs fixed shapes, also of the context that attention reads. Reading all that the cache can hold would cost
bandwidth: at batch 32 and 2,048 positions half as much as the weights of an 8B model. So there is a graph for each
multiple of `BUCKET` positions, captured when the first row gets there: at most about `BUCKET` positions are read in
vain, and 128 new tokens need two graphs.

The host starts the next step before it reads the report of the last one, so that the device never waits for the host.
It therefore learns one step late that all rows are done. At most one step of a call is too many: it emits nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from specdec_lib.decoding.progress import Progress
from specdec_lib.decoding.step import Step
from specdec_lib.decoding.uniforms import DRAWS_PER_STEP, Uniforms
from specdec_lib.models.cache import RaggedCache
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.runner import LanguageModel

BUCKET = 128  # positions
IN_FLIGHT = 2  # steps that the device has been given and whose reports the host has not read

Draft = LanguageModel | DraftHead
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


class DeviceUniforms(Uniforms):
    """A table of uniform numbers whose next draw is counted on the device, so that a replay finds the right one."""

    def __init__(self, batch_size: int, draws: int, width: int, device: torch.device):
        super().__init__(torch.zeros(batch_size, draws, width, dtype=torch.float64, device=device))
        self.place = torch.zeros(1, dtype=torch.int64, device=device)

    def next(self) -> torch.Tensor:
        drawn = self.table.index_select(1, self.place)[:, 0]
        self.place += 1
        return drawn

    def refill(self, table: torch.Tensor) -> None:
        """Begin again with the draws of `table`, of which there are no more than this table holds."""
        self.table[:, : table.shape[1]] = table
        self.place.zero_()


@dataclass
class CapturedStep:
    """A step with its graphs, one for each bound of the rows' lengths."""

    step: Step
    uniforms: DeviceUniforms
    replays: dict[int, Replay] = field(default_factory=dict)

    def run(self, kept: KeptSteps, progress: Progress) -> None:
        """Decode until all rows are done; rows and uniforms hold the call already."""
        rows = self.step.call.rows
        self.step.start()
        finished = progress.read(rows.report.tolist())
        while not finished:
            bound = self._bound(progress)
            replay = self.replays.get(bound)
            finished = self._replay(kept, progress, bound) if replay else self._capture(kept, progress, bound)

    def _bound(self, progress: Progress) -> int:
        """The smallest bound of the rows' lengths that leaves room for one step; with its tokens, a whole bucket."""
        rows = self.step.call.rows
        return min(round_up(progress.longest + 2 * rows.width), rows.capacity) - rows.width

    def _capture(self, kept: KeptSteps, progress: Progress, bound: int) -> bool:
        """Run a step under this bound operator by operator, then capture it for those to come."""
        rows = self.step.call.rows
        rows.max_length = bound
        kept.graphs.warm_up(self.step)
        finished = progress.read(rows.report.tolist())
        if not finished and kept.failure is None:
            started = time.perf_counter()
            try:
                self.replays[bound] = kept.graphs.capture(self.step)
                kept.captured += 1
            except RuntimeError as error:
                kept.failure = str(error).strip().splitlines()[0]
                kept.forget()  # later calls run their steps one by one, in caches of their own
            progress.leave_out(time.perf_counter() - started)
        return finished

    def _replay(self, kept: KeptSteps, progress: Progress, bound: int) -> bool:
        """Replay until all rows are done, or until one may have outgrown the bound."""
        rows, replay = self.step.call.rows, self.replays[bound]
        reports: deque[Callable[[], list[int]]] = deque()  # of the steps in flight
        while True:
            while len(reports) < IN_FLIGHT and progress.max_remaining > len(reports):
                longest = min(progress.longest + len(reports) * rows.width, progress.longest_possible)
                if longest > bound:
                    break
                replay()
                progress.replayed = True
                reports.append(kept.graphs.ask(rows.report))
            if not reports:
                return False
            if progress.read(reports.popleft()()):
                return True


class KeptSteps:
    """What a target keeps between calls: captured steps, and the caches that they share.

    All of them are for one batch size, capacity and draft. When a call needs another, they are dropped, so that the
    memory in use is that of one setting, and a draft that is no longer wanted is not kept alive.
    """

    def __init__(self, graphs: CudaGraphs):
        self.graphs = graphs
        self.batch_size = self.capacity = 0
        self.drafts: frozenset[Draft] = frozenset()
        self.caches: dict[object, RaggedCache] = {}
        self.steps: dict[Hashable, CapturedStep] = {}
        self.captured = 0
        self.failure: str | None = None

    def fit(self, batch_size: int, positions: int, drafts: frozenset[Draft] = frozenset()) -> None:
        """Make room for rows of that many positions, and not for much more, and for these drafts."""
        capacity = round_up(positions)
        fits = batch_size == self.batch_size and capacity <= self.capacity <= capacity + 4 * BUCKET
        if not fits or (drafts and self.drafts and drafts != self.drafts):
            self.forget()
            self.batch_size, self.capacity = batch_size, capacity
        self.drafts = drafts or self.drafts  # the baseline and lookup have none, and fit next to any

    def uniforms(self, width: int, device: torch.device) -> DeviceUniforms:
        """A table for as many draws as a call of this capacity can take, and for a step too many."""
        return DeviceUniforms(self.batch_size, DRAWS_PER_STEP * (self.capacity + 1), width, device)

    def forget(self) -> None:
        """Drop all steps with their graphs and caches, but for those of a call that is under way."""
        self.caches.clear()
        self.steps.clear()
        self.graphs.forget()
        self.batch_size, self.capacity, self.drafts = 0, 0, frozenset()


def round_up(positions: int) -> int:
    """To whole buckets."""
    return -(-positions // BUCKET) * BUCKET


def drafts_of(proposer: object) -> frozenset[Draft]:
    """The models that a proposer drafts with, also those of proposers inside it."""
    parts = vars(proposer).values() if hasattr(proposer, "__dict__") else ()
    found = frozenset(part for part in parts if isinstance(part, Draft))
    inner = [drafts_of(part) for part in parts if not isinstance(part, Draft) and hasattr(part, "propose")]
    return found.union(*inner)


def why_not_captured(target: LanguageModel) -> str | None:
    """Why the steps of this model run one by one; None if they are captured."""
    if target.device.type != "cuda":
        return f"no CUDA device, steps run on a {target.device.type}"
    if not target.compiled:
        return "not asked for"
    if not target.active_engine.capturable:
        return f"the model is read {target.engine}"
    return target.kept.failure if isinstance(target.kept, KeptSteps) else None


def kept_steps(target: LanguageModel) -> KeptSteps | None:
    """The captured steps that `target` keeps, or None if its steps are not captured."""
    if why_not_captured(target):
        return None
    if target.kept is None:
        target.kept = KeptSteps(CudaGraphs(target.device))
    assert isinstance(target.kept, KeptSteps)
    return target.kept


def new_graphs(target: LanguageModel) -> CudaGraphs | None:
    """Graphs to capture with as the steps of this model are captured, or None if they are not."""
    return None if why_not_captured(target) else CudaGraphs(target.device)


def captured_graphs(target: LanguageModel) -> int:
    """How many graphs of its steps have been captured."""
    return target.kept.captured if isinstance(target.kept, KeptSteps) else 0


def graph_facts(target: LanguageModel) -> str:
    """Whether the steps of this model are captured, with how many graphs, or why not."""
    if reason := why_not_captured(target):
        return f"none: {reason}"
    graphs = captured_graphs(target)
    return f"captured: {graphs} graphs" if graphs else "captured when decoding begins"


def drop_captured(target: LanguageModel) -> None:
    """Free what earlier calls left for later ones; the next call makes room for itself alone."""
    if isinstance(target.kept, KeptSteps):
        target.kept.forget()
