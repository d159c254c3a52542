"""How the steps of a call are run: one by one, or captured once in CUDA graphs and replayed.

A step is one Python function for baseline and speculation each, over tensors that stay where they are, and waits for
nothing. On a CPU it is simply called. On a GPU its few thousand kernels take longer to start one by one than to run; so
the first step of a kind is run and then captured, and later ones are replays of the whole step.

Replaying needs fixed shapes, also of the context that attention reads. Reading all that the cache can hold would cost
bandwidth: at batch 32 and 2,048 positions half as much as the weights of an 8B model. A graph for each power of two
would waste up to half of it, and one for each length would be captured all the time. So there is a graph for each
multiple of `BUCKET` positions, captured when the first row gets there: hardly more than `BUCKET` positions are read in
vain, and 128 new tokens need two graphs.

The host learns how a step went from a small report that is copied behind it. It starts the next step before it reads
the report of this one, so that the device never waits for the host; whether a row has ended is thus known one step
late. The step too many, of which there is at most one in a call and none where every row takes its last token for
certain, finds all rows done and emits nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch

from specdec_lib.decoding.cuda_graphs import CudaGraphs, Replay
from specdec_lib.decoding.state import DecodeState, positions_needed
from specdec_lib.decoding.streams import CountedStreams, RowStreams
from specdec_lib.decoding.verification import verify
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.runner import LanguageModel

BUCKET = 128  # positions
PASSAGES = 2  # of the streams of random numbers, that a step enters at most: proposing and verifying
IN_FLIGHT = 2  # steps that the device has been given and the host has not seen the end of


class Step(Protocol):
    """One step of decoding, over the tensors of its state and caches, which it changes in place."""

    state: DecodeState
    streams: RowStreams

    def start(self) -> None:
        """Read the prompts and emit the first token of every row."""

    def __call__(self) -> None:
        """Advance every row. Must be nothing but operators on tensors: what Python does besides is not replayed."""


S = TypeVar("S", bound=Step)
MakeStep = Callable[[DecodeState, RowStreams], S]


def run_steps(
    make: MakeStep[S],
    target: LanguageModel,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    slack: int,
    generator: torch.Generator,
    capture_key: Hashable,
) -> S:
    """Decode until every row is done, and return the step with its final state.

    Args:
        make: makes the step that runs on a state, with streams of random numbers.
        slack: the most tokens that a step emits in a row, and the most numbers that a passage of a stream takes.
        capture_key: calls with equal keys make interchangeable steps; None if a step cannot be captured.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop_token_ids": stop_token_ids}
    kept = _kept(target)
    if kept is None or capture_key is None or not _made_beforehand(generator):
        state = DecodeState(target, prompts, slack=slack, **options)
        step = make(state, RowStreams.of(generator, state.batch_size, slack))
        step.start()
        while not step.state.look():
            step()
        return step
    kept.fit(len(prompts), positions_needed(prompts, max_new_tokens, slack), _drafts_in(capture_key))
    key = (capture_key, slack, len(stop_token_ids))
    if key not in kept.steps:
        state = DecodeState(target, prompts, slack=slack, capacity=kept.capacity, caches=kept.caches, **options)
        streams = CountedStreams(len(prompts), PASSAGES * state.capacity, slack, target.device)
        kept.steps[key] = CapturedStep(make(state, streams), streams, kept)
    try:
        return kept.steps[key].run(prompts, generator, **options)
    except BaseException:
        target.kept = None  # whatever lies in these caches now, later calls must not see it
        raise


def capture_key(part: object) -> Hashable:
    """What makes a proposer or verifier interchangeable with another; None if it cannot be captured.

    Its class says so with a property `capture_key`, by which it promises to be nothing but operators on tensors. A
    subclass may do more than that, so it has to say so itself.
    """
    if part is verify:
        return verify
    declared = vars(type(part)).get("capture_key")
    key = None if declared is None else declared.fget(part)
    return None if key is None else (type(part), key)


def _drafts_in(key: Hashable) -> frozenset[LanguageModel | DraftHead]:
    """The drafts that a proposer's `capture_key` names."""
    if isinstance(key, tuple):
        return frozenset().union(*map(_drafts_in, key))
    return frozenset([key] if isinstance(key, LanguageModel | DraftHead) else [])


def _made_beforehand(generator: torch.Generator) -> bool:
    """Whether `RowStreams.numbers_of` tells all that its streams will give, so that they can lie there for a replay."""
    return type(generator) is torch.Generator or getattr(type(generator), "take", None) is RowStreams.take


def captured_graphs(target: LanguageModel) -> int:
    """How many graphs of its steps have been captured."""
    return target.kept.captured if isinstance(target.kept, KeptSteps) else 0


def graph_facts(target: LanguageModel) -> str:
    """Whether the steps of this model are captured, with how many graphs, or why not."""
    if reason := _why_not(target):
        return f"none: {reason}"
    graphs = captured_graphs(target)
    return f"captured: {graphs} graphs" if graphs else "captured when decoding begins"


def new_graphs(target: LanguageModel) -> CudaGraphs | None:
    """Graphs to capture with as the steps of this model are captured, or None if they are not."""
    return None if _why_not(target) else CudaGraphs(target.device)


def drop_captured(target: LanguageModel) -> None:
    """Free what earlier calls left for later ones; the next call makes room for itself alone."""
    if isinstance(target.kept, KeptSteps):
        target.kept.forget()


class KeptSteps:
    """What a target keeps between calls: steps with their graphs, and the caches that they share.

    All of them are for one batch size, capacity and draft. When a call needs another, they are dropped, so that the
    memory in use is that of one setting, and a draft that is no longer wanted is not kept alive.
    """

    def __init__(self, graphs: CudaGraphs):
        self.graphs = graphs
        self.batch_size = self.capacity = 0
        self.drafts: frozenset[LanguageModel | DraftHead] = frozenset()
        self.caches: dict[object, RaggedStaticCache] = {}
        self.steps: dict[Hashable, CapturedStep[Any]] = {}
        self.captured = 0
        self.failure: str | None = None

    def fit(self, batch_size: int, positions: int, drafts: frozenset[LanguageModel | DraftHead] = frozenset()) -> None:
        """Make room for rows of that many positions, and not for much more, and for these drafts."""
        capacity = -(-positions // BUCKET) * BUCKET
        fits = batch_size == self.batch_size and capacity <= self.capacity <= capacity + 4 * BUCKET
        if not fits or (drafts and self.drafts and drafts != self.drafts):
            self.forget()
            self.batch_size, self.capacity = batch_size, capacity
        self.drafts = drafts or self.drafts  # the baseline and lookup have none, and fit beside any

    def forget(self) -> None:
        """Drop all steps with their graphs and caches, but for those of a call that is under way."""
        self.caches.clear()
        self.steps.clear()
        self.graphs.forget()
        self.batch_size, self.capacity, self.drafts = 0, 0, frozenset()


class CapturedStep(Generic[S]):
    """A step with the graphs of it that have been captured, one for each bound of the rows' lengths."""

    def __init__(self, step: S, streams: CountedStreams, kept: KeptSteps):
        self.step, self.streams, self.kept = step, streams, kept
        self.replays: dict[int, Replay] = {}
        self.passages = 0

    def run(self, prompts: Sequence[torch.Tensor], generator: torch.Generator, **options: Any) -> S:
        """Decode `prompts` until every row is done; the random numbers are those that `generator` would give."""
        state = self.step.state
        state.restart(prompts, **options)
        source = RowStreams.of(generator, state.batch_size, state.slack)
        self.streams.restart(source, PASSAGES * state.max_new_tokens)
        self.step.start()
        finished = state.look()
        while not finished:
            bound = self._bound()
            finished = self._replay(bound) if bound in self.replays else self._first(bound)
        source.passage += self.passages * (len(state.times) - 1)
        return self.step

    def _bound(self) -> int:
        """The smallest bound of the rows' lengths that leaves room for one step; with its tokens, a whole bucket."""
        state = self.step.state
        return min(-(-(state.longest + 2 * state.slack) // BUCKET) * BUCKET, state.capacity) - state.slack

    def _first(self, bound: int) -> bool:
        """Run a step under this bound one operator at a time, then capture it for those to come."""
        state, kept, entered = self.step.state, self.kept, self.streams.passage
        state.max_length = bound
        kept.graphs.warm_up(self.step)
        self.passages = self.streams.passage - entered  # that every step enters
        finished = state.look()
        if not finished and kept.failure is None:
            started = time.perf_counter()
            state.max_length = bound
            try:
                self.replays[bound] = kept.graphs.capture(self.step)
                kept.captured += 1
            except RuntimeError as error:
                kept.failure = str(error).strip().splitlines()[0]
                kept.forget()  # later calls run their steps one by one, in caches of their own
            seconds = time.perf_counter() - started
            state.capture_s += seconds
            state.started += seconds
        return finished

    def _replay(self, bound: int) -> bool:
        """Replay until every row is done, or until one may have outgrown the bound."""
        state = self.step.state
        reports: deque[Callable[[], list[int]]] = deque()  # of the steps in flight
        while True:
            while len(reports) < IN_FLIGHT and state.left > len(reports) and self._longest_after(len(reports)) <= bound:
                self.replays[bound]()
                state.replayed = True
                reports.append(self.kept.graphs.ask(state.report))
            if not reports:
                return False
            if state.note(reports.popleft()()):
                return True

    def _longest_after(self, steps: int) -> int:
        """How long a row can be after so many steps more than the host has seen."""
        state = self.step.state
        return min(state.longest + steps * state.slack, state.longest_prompt + state.max_new_tokens)


def _kept(target: LanguageModel) -> KeptSteps | None:
    """The steps that `target` keeps, or None if its steps are not to be captured."""
    if _why_not(target):
        return None
    if target.kept is None:
        target.kept = KeptSteps(CudaGraphs(target.device))
    assert isinstance(target.kept, KeptSteps)
    return target.kept


def _why_not(target: LanguageModel) -> str | None:
    if target.device.type != "cuda":
        return f"no CUDA device, steps run on a {target.device.type}"
    if not target.compiled:
        return "not asked for"
    return target.kept.failure if isinstance(target.kept, KeptSteps) else None
