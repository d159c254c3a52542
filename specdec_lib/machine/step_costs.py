"""What the pieces of a decoding step cost: the target's pass over 1 to 16 tokens, drafting, sampling.

The pieces are timed inside the very steps that the sweep runs, with the device synchronised around each, so that
whatever a step does is in one of them. Where the sweep's steps were captured and replayed, so are whole steps and
pieces here (`replayed_steps`). Acceptance is switched off - each step emits one token - so that every point has the
same number of steps at the same context.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import BaselineStep
from specdec_lib.decoding.proposers import NgramProposer, Proposal, Proposer, make_proposer
from specdec_lib.decoding.speculative import SpeculativeStep
from specdec_lib.decoding.state import DecodeState, check_context
from specdec_lib.decoding.streams import RowStreams
from specdec_lib.decoding.verification import Verification, verify
from specdec_lib.machine.replayed_steps import replayed_pieces
from specdec_lib.machine.stopwatch import Rounds, Stopwatch, seconds, timed_as_run
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel, Step
from specdec_lib.study.cell_files import Row, write_at_once

WARM_UP, STEPS = 6, 3  # steps of each call that are run, and then timed: those behind a prefill take longer
REPETITIONS = 6
FILE = "step_costs.json"

Point = tuple[int, int, int, float]  # batch size, context, tokens of a pass, temperature
Key = tuple[str, int, int, int, float]  # the piece, and its point
KEY = ("model", "batch_size", "context_tokens", "num_tokens", "temperature")


def measure_step_costs(
    pair: Pair,
    batch_sizes: Sequence[int],
    contexts: Sequence[int],
    max_tokens: int = 16,
    *,
    token_counts: Sequence[int] | None = None,
    temperatures: Sequence[float] = (1.0,),
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> list[Row]:
    """Time the pieces of a step at every batch size and context, in interleaved repetitions.

    Args:
        contexts: tokens of every row's prompt, random ids.
        max_tokens: the target's passes take 1 to this many tokens.
        token_counts: the numbers of tokens instead, if not all of them are wanted.

    Returns:
        One row per `model`, `batch_size`, `context_tokens`, `num_tokens` and `temperature`, with `samples_ms`, in every
        repetition the median of three steps, and their geometric mean `ms`, as the times of rows are averaged:
        "target" is a pass of the target over `num_tokens` tokens of each row, logits included; "draft" and "ngram" are
        a proposal of `num_tokens` tokens, the choice of them included; "sampling" is everything else of a step whose
        pass took `num_tokens` tokens: probabilities, verification or choice, bookkeeping, and the host's look.
        `replayed` says whether they were captured and replayed, as the steps of rows with the same mark.
    """
    points = [
        (batch, context, tokens, temperature)
        for batch in batch_sizes
        for context in contexts
        for tokens in token_counts or range(1, max_tokens + 1)
        for temperature in temperatures
    ]
    return timed_as_run(pair.target, lambda watch: step_costs_in_rounds(pair, watch, points, repetitions, seed).whole())


def step_costs_in_rounds(
    pair: Pair, watch: Stopwatch, points: Sequence[Point], repetitions: int = REPETITIONS, seed: int = 0
) -> Rounds[list[Row]]:
    """The same at these points, to be taken round by round, with other work in between.

    What is captured is captured once, so that all repetitions of a point are one round.

    Raises:
        ValueError: a context leaves target or draft no room for these steps.
    """
    seen: dict[Key, list[float]] = defaultdict(list)
    too_large: set[Point] = set()
    for model, (_, context, tokens, _) in itertools.product((pair.target, pair.draft), points):
        check_context(model, context, new_tokens(tokens))
    if watch.graphs is not None:
        pair.target.kept = None  # what the sweep captured has had its time; its memory is needed

    @torch.inference_mode()
    def time_point(point: Point, samples: int) -> None:
        if point in too_large:
            return
        try:
            for key, spent in _time_point(pair, watch, *point, seed, samples):
                seen[key].append(spent * 1e3)
        except torch.OutOfMemoryError:
            too_large.add(point)
            torch.cuda.empty_cache()

    def rows() -> list[Row]:
        timed = {"replayed": watch.graphs is not None}
        return [
            dict(zip(KEY, key, strict=True)) | {"ms": _mean(ms), "samples_ms": [round(each, 4) for each in ms]} | timed
            for key, ms in sorted(seen.items())
        ]

    rounds: list[Callable[[], None]] = []
    times, samples = (repetitions, 1) if watch.graphs is None else (1, repetitions)
    for repetition in range(times):
        order = list(points)
        random.Random(f"{seed} {repetition}").shuffle(order)
        rounds += [partial(time_point, point, samples) for point in order]
    return Rounds(rounds, rows)


def new_tokens(tokens: int) -> int:
    """How many tokens a call must have room for whose passes take `tokens` tokens: all its steps draft whole."""
    return WARM_UP + STEPS + 1 + tokens


def _mean(ms: Sequence[float]) -> float:
    """Geometric; of differences, which noise may turn negative, arithmetic."""
    return statistics.geometric_mean(ms) if min(ms) > 0 else statistics.fmean(ms)


def write_step_costs(folder: Path, rows: Sequence[Row]) -> None:
    """Write `step_costs.json` into a run's folder, at once; with no rows, if the costs could not be measured."""
    write_at_once(Path(folder) / FILE, json.dumps({"evidence": "measured", "rows": rows}, indent=1) + "\n")


class _TimedTarget:
    """The target, with the seconds of each of its passes."""

    def __init__(self, target: LanguageModel):
        self.target = target
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def forward(self, *arguments: Any) -> Step:
        spent, step = seconds(self.target.device, lambda: self.target.forward(*arguments))
        self.seconds.append(spent)
        return step

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        spent, logits = seconds(self.target.device, lambda: self.target.logits(hidden))
        self.seconds[-1] += spent
        return logits


class _TimedProposer:
    """The pair's draft, with the seconds of each proposal, and of one by n-gram lookup beside it."""

    def __init__(self, proposer: Proposer):
        self.proposer, self.lookup = proposer, NgramProposer()
        self.seconds: list[float] = []
        self.lookup_seconds: list[float] = []

    def start(self, state: DecodeState) -> None:
        self.proposer.start(state)

    def read_prompt(self, state: DecodeState, start: int, end: int, features: torch.Tensor) -> None:
        self.proposer.read_prompt(state, start, end, features)

    def propose(
        self, state: DecodeState, num_draft_tokens: int, sampling: SamplingConfig, generator: torch.Generator
    ) -> Proposal:
        arguments = (state, num_draft_tokens, sampling, generator)
        spent, _ = seconds(state.tokens.device, lambda: self.lookup.propose(*arguments))
        self.lookup_seconds.append(spent)
        spent, proposal = seconds(state.tokens.device, lambda: self.proposer.propose(*arguments))
        self.seconds.append(spent)
        return proposal


def _time_point(
    pair: Pair, watch: Stopwatch, batch: int, context: int, tokens: int, temperature: float, seed: int, samples: int
) -> Iterator[tuple[Key, float]]:
    """Seconds of each piece, `samples` times: the median over `STEPS` steps."""
    ids = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, pair.target.vocab_size, (context,), generator=ids) for _ in range(batch)]
    generator, sampling = torch.Generator(pair.target.device).manual_seed(seed), SamplingConfig(temperature=temperature)
    time_steps = _time_called if watch.graphs is None else _time_replayed
    steps = time_steps(pair, watch, prompts, tokens, sampling, generator)
    proposed = {"draft": tokens - 1, "ngram": tokens - 1}
    for _ in range(samples):
        taken = list(itertools.islice(steps, STEPS))
        for piece in taken[0]:
            spent = statistics.median(step[piece] for step in taken)
            yield (piece, batch, context, proposed.get(piece, tokens), temperature), spent


def _time_called(
    pair: Pair,
    watch: Stopwatch,
    prompts: list[torch.Tensor],
    tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:
    """Seconds of the pieces of steps that decode `prompts`, all of which have room for another whole step."""
    target, proposer = _TimedTarget(pair.target), _TimedProposer(make_proposer("draft", pair))
    stand_in = cast("LanguageModel", target)
    state = DecodeState(stand_in, prompts, max_new_tokens=new_tokens(tokens), stop_token_ids=(), slack=tokens)
    streams = RowStreams.of(generator, len(prompts), tokens)
    step: BaselineStep | SpeculativeStep = BaselineStep(stand_in, state, sampling, streams)
    if tokens > 1:
        step = SpeculativeStep(stand_in, proposer, _accept_nothing, state, tokens - 1, sampling, streams)
    step.start()
    state.look()
    for _ in range(WARM_UP):
        step()
        state.look()
    for _ in range(STEPS):
        whole, _ = seconds(watch.device, lambda: (step(), state.look()))
        spent = {"target": target.seconds[-1]}
        if tokens > 1:
            spent |= {"draft": proposer.seconds[-1], "ngram": proposer.lookup_seconds[-1]}
        yield spent | {"sampling": whole - sum(spent.values())}


def _time_replayed(
    pair: Pair,
    watch: Stopwatch,
    prompts: list[torch.Tensor],
    tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:
    """The same of a captured step and of its pieces, captured too, as often as asked for."""
    timers = replayed_pieces(pair, watch, prompts, tokens, sampling, generator, _accept_nothing)
    while True:
        spent = {name: timer() for name, timer in timers.items()}
        whole = spent.pop("step")  # no lookup is in it
        yield spent | {"sampling": whole - spent["target"] - spent.get("draft", 0.0)}


def _accept_nothing(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """Do all the work of verification and keep one token, so that every call takes the same number of steps."""
    verdict = verify(target_probs, draft_probs, draft_tokens, generator)
    return Verification(torch.zeros_like(verdict.num_accepted), verdict.next_token)
