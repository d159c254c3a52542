"""What the pieces of a decoding step cost: the target's pass over 1 to 16 tokens, each way to propose, everything else.

The pieces are those of `decoding.step`, operator for operator, over rows that are done: such a step does the same work
and moves nothing, so that a piece can be timed again and again at the same context. Where the sweep's steps are
captured and replayed, so are the pieces.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.captured_loop import round_up
from specdec_lib.decoding.checks import check_context
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.ops import choose_ops
from specdec_lib.decoding.proposers.proposer import Drafting, Proposal, widened
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.step import as_wide_as_needed, emit, prefill
from specdec_lib.decoding.uniforms import Uniforms
from specdec_lib.machine.files import write_atomically
from specdec_lib.machine.stopwatch import Stopwatch
from specdec_lib.methods import METHODS, RULES, make_proposer
from specdec_lib.models.pair import Pair

WARM_UP, STEPS = 3, 3  # times that the pieces are run, and then timed: the first after a prefill take longer
REPETITIONS = 6
FILE = "step_costs.json"
TARGET, SAMPLING = "target", "sampling"

Row = dict[str, object]
Point = tuple[int, int, int, float]  # batch size, context, tokens of a pass, temperature
Key = tuple[str, int, int, int, float]  # the piece, and its point
KEY = ("model", "batch_size", "context_tokens", "num_tokens", "temperature")


@torch.inference_mode()
def measure_step_costs(
    pair: Pair, watch: Stopwatch, methods: Sequence[str], points: Sequence[Point], repetitions: int = REPETITIONS
) -> list[Row]:
    """Time the pieces of a step at these points, over rows of random ids, in interleaved repetitions.

    Where they are captured, all repetitions of a point follow one another, because each is captured once.

    Returns:
        One row per `model`, `batch_size`, `context_tokens`, `num_tokens` and `temperature`. `samples_ms` holds for
        every repetition the median of three times, and `ms` their geometric mean, as the times of rows are averaged.
        "target" is a pass of the target over `num_tokens` tokens of each row, logits included. The name of a method is
        its proposal of `num_tokens` tokens. "sampling" is the rest of a step whose pass took `num_tokens` tokens,
        by the rule "token" whatever the study's is.
        `replayed` says whether they were captured and replayed, as the steps of rows with the same mark.

    Raises:
        ValueError: a context leaves target or draft no room for these steps.
    """
    seen: dict[Key, list[float]] = defaultdict(list)
    too_large: set[Point] = set()
    for model, (_, context, tokens, _) in itertools.product((pair.target, pair.draft), points):
        check_context(model, context, 1 + tokens)
    captured = watch.graphs is not None
    times, samples = (1, repetitions) if captured else (repetitions, 1)
    for repetition in range(times):
        for point in random.Random(repetition).sample(list(points), len(points)):
            if point in too_large:
                continue
            try:
                for key, spent in _time_point(pair, watch, methods, point, samples):
                    seen[key].append(spent * 1e3)
            except torch.OutOfMemoryError:
                too_large.add(point)
                torch.cuda.empty_cache()
    return [
        dict(zip(KEY, key, strict=True))
        | {"ms": statistics.geometric_mean(ms), "samples_ms": [round(each, 4) for each in ms]}
        | {"replayed": captured and _is_capturable(key[0], pair)}
        for key, ms in sorted(seen.items())
    ]


def write_step_costs(folder: Path, rows: Sequence[Row]) -> None:
    """Write `step_costs.json` into a run's folder; with no rows, if the costs could not be measured."""
    write_atomically(Path(folder) / FILE, json.dumps({"evidence": "measured", "rows": rows}, indent=1) + "\n")


def _time_point(
    pair: Pair, watch: Stopwatch, methods: Sequence[str], point: Point, samples: int
) -> list[tuple[Key, float]]:
    """Seconds of each piece in the order of a step, `samples` times; each is a median over `STEPS` times."""
    batch, context, tokens, temperature = point
    pieces = step_pieces(
        pair, call_of_done_rows(pair, watch, *point), [name for name in methods if METHODS[name].chains == 1]
    )
    if tokens > 1:  # two chains have a call of their own, with more room and more random numbers
        for name in (name for name in methods if METHODS[name].chains > 1):
            pieces[name] = step_pieces(pair, call_of_done_rows(pair, watch, *point, METHODS[name].chains), [name])[name]
    called = Stopwatch(watch.device)
    timers = {name: (watch if _is_capturable(name, pair) else called).ready(piece) for name, piece in pieces.items()}
    for _ in range(WARM_UP):
        for timer in timers.values():
            timer()
    found = []
    for _ in range(samples):
        taken = [{name: timer() for name, timer in timers.items()} for _ in range(STEPS)]
        for name in timers:
            count = tokens if name in (TARGET, SAMPLING) else tokens - 1
            spent = statistics.median(step[name] for step in taken)
            found.append(((name, batch, context, count, temperature), spent))
    return found


def _is_capturable(piece: str, pair: Pair) -> bool:
    return piece in (TARGET, SAMPLING) or make_proposer(piece, pair).capturable


def call_of_done_rows(
    pair: Pair, watch: Stopwatch, batch: int, context: int, tokens: int, temperature: float, chains: int = 1
) -> Call:
    """A call over random prompts whose rows are done once they are read, with the bounds that the sweep's steps have.

    Its caches stay where they are if pieces are captured.
    """
    target, captured = pair.target, watch.graphs is not None
    sampling = SamplingConfig(temperature=temperature)
    width = chains * (tokens - 1) + 1
    positions = context + 1 + width
    capacity = round_up(positions) if captured else positions
    rows = Rows(target, batch_size=batch, capacity=capacity, width=width, num_stops=0)
    ids = torch.Generator().manual_seed(0)
    rows.fill([torch.randint(target.vocab_size, (context,), generator=ids) for _ in range(batch)], 1, ())
    uniforms = SameUniforms(torch.rand(batch, 1, width, dtype=torch.float64, generator=ids).to(target.device))
    counters = Counters(tokens - 1, target.device)
    ops = choose_ops(target, sampling)
    return Call(target, sampling, tokens - 1, ops, rows, counters, uniforms, {} if captured else None)


class SameUniforms(Uniforms):
    """Every draw takes the same numbers, so that a piece may run as often as it likes."""

    def next(self) -> torch.Tensor:
        return self.table[:, 0]


def step_pieces(pair: Pair, call: Call, methods: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Read the prompts of `call`; then the pieces of its step, in their order: proposals, "target", "sampling".

    The last two take what the others gave when they first ran, so that all may run in any order.
    """
    target, rows, ops, gamma = pair.target, call.rows, call.ops, call.num_draft_tokens
    drafting = {name: make_proposer(name, pair).start(call) for name in methods if gamma}

    def read_prompt(start: int, end: int, features: torch.Tensor) -> None:
        for each in drafting.values():
            each.read_prompt(rows, start, end, features)

    cache = prefill(call, read_prompt)
    rows.max_length += 1
    if call.caches is not None:  # the bound that a captured step of the sweep has here
        rows.max_length = min(round_up(rows.max_length + 2 * rows.width), rows.capacity) - rows.width

    def propose(each: Drafting) -> Proposal:
        return as_wide_as_needed(call, each.propose(rows, gamma, call.uniforms.next()))

    draft_tokens, draft_probs = rows.tokens[:, :0], torch.empty(0)
    for each in drafting.values():
        draft_tokens, draft_probs = widened(propose(each), gamma)

    def target_pass() -> tuple[torch.Tensor, torch.Tensor]:  # features, logits
        cache.set_lengths(rows.lengths - 1, rows.max_length - 1)
        last = rows.last_token()
        passed = target.forward(torch.cat([last, draft_tokens], dim=1) if gamma else last, cache)
        return passed.features, target.logits(passed.hidden)

    features, logits = target_pass()
    verify = ops.verification(RULES["token"])

    def everything_else() -> None:
        target_probs = ops.probabilities(logits)
        if gamma == 0:
            emit(call, target_probs)
            return
        verification = verify(target_probs, draft_probs, draft_tokens, call.uniforms.next())
        rows.features[:, : features.shape[1]].copy_(features)
        ops.append(rows, call.counters, draft_tokens, draft_probs, target_probs, verification)

    proposals = {name: partial(propose, each) for name, each in drafting.items()}
    return {**proposals, TARGET: target_pass, SAMPLING: everything_else}
