"""What the pieces of a decoding step cost: the target's pass over 1 to 16 tokens, drafting, sampling.

The pieces are timed inside the very decoding loops that the sweep times, with the device synchronised around each, so
that whatever these loops do is in one of them. Where the sweep's steps were captured and replayed, so are whole steps
and pieces here (`replayed_steps`). Acceptance is switched off - each step emits one token - so that every point has the
same number of steps at the same context.
"""

from __future__ import annotations

import json
import random
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import NgramProposer, Proposal, Proposer, make_proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.state import DecodeState
from specdec_lib.decoding.verification import Verification, verify
from specdec_lib.measure.replayed_steps import replayed_pieces
from specdec_lib.measure.results import write_at_once
from specdec_lib.measure.stopwatch import Stopwatch, seconds, timed_as_run
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel, Step

COLUMNS = ["model", "batch_size", "context_tokens", "num_tokens", "temperature", "ms", "samples_ms", "replayed"]
STEPS = 3  # timed in each call, after one that warms up
FILE = "step_costs.json"

Point = tuple[int, int, int, float]  # batch size, context, tokens of a pass, temperature
Key = tuple[str, int, int, int, float]  # the piece, and its point


def measure_step_costs(
    pair: Pair,
    batch_sizes: Sequence[int],
    contexts: Sequence[int],
    max_tokens: int = 16,
    *,
    token_counts: Sequence[int] | None = None,
    temperatures: Sequence[float] = (1.0,),
    repetitions: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Time the pieces of a step at every batch size and context; the median over interleaved repetitions.

    Args:
        contexts: tokens of every row's prompt, random ids.
        max_tokens: the target's passes take 1 to this many tokens.
        token_counts: the numbers of tokens instead, if not all of them are wanted.

    Returns:
        One row per `model`, `batch_size`, `context_tokens`, `num_tokens` and `temperature`, with its `ms` and all the
        times, `samples_ms`, that it is the median of:
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
    return timed_as_run(pair.target, partial(_measure, pair, points, repetitions, seed))


@torch.inference_mode()
def _measure(pair: Pair, points: Sequence[Point], repetitions: int, seed: int, watch: Stopwatch) -> pd.DataFrame:
    replayed, points = watch.graphs is not None, list(points)
    if replayed:
        pair.target.kept = None  # what the sweep captured has had its time; its memory is needed
    seen: dict[Key, list[float]] = defaultdict(list)
    for repetition in range(repetitions):
        order = list(points)
        random.Random(f"{seed} {repetition}").shuffle(order)
        for point in order:
            try:
                timed = _time_replayed(pair, *point, seed, watch) if replayed else _time_point(pair, *point, seed)
                for key, ms in timed:
                    seen[key].append(ms)
            except torch.OutOfMemoryError:
                points.remove(point)  # the table lacks it
                torch.cuda.empty_cache()
    rows = [(*key, statistics.median(ms), [round(each, 4) for each in ms]) for key, ms in sorted(seen.items())]
    return pd.DataFrame(rows, columns=COLUMNS[:-1]).assign(replayed=replayed)


def write_step_costs(folder: Path, costs: pd.DataFrame) -> None:
    """Write `step_costs.json` into a run's folder, at once."""
    rows = costs.astype(object).where(costs.notna(), None).to_dict(orient="records")
    write_at_once(Path(folder) / FILE, json.dumps({"evidence": "measured", "rows": rows}, indent=1) + "\n")


def read_step_costs(folder: Path) -> pd.DataFrame:
    """The table that `write_step_costs` wrote; empty if the costs could not be measured.

    Raises:
        ValueError: there is none yet.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: run the study first, with make run GPU=<name>")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    costs = pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"temperature": "float64"})
    return costs.assign(replayed=costs["replayed"].eq(True))  # earlier files do not say: they called all pieces


class _TimedTarget:
    """The target, with the seconds of each of its passes."""

    compiled = False  # nothing is captured: of a captured step the pieces could not be timed

    def __init__(self, target: LanguageModel):
        self.target = target
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def forward(self, tokens: torch.Tensor, cache: Any) -> Step:
        spent, step = seconds(self.target.device, lambda: self.target.forward(tokens, cache))
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
    pair: Pair, batch: int, context: int, tokens: int, temperature: float, seed: int
) -> Iterator[tuple[Key, float]]:
    """The cost of each piece in each step of one call."""
    prompts = _prompts(pair, batch, context, seed)
    target, proposer = _TimedTarget(pair.target), _TimedProposer(make_proposer("draft", pair))
    options: dict[str, Any] = {
        "max_new_tokens": STEPS + 2,
        "sampling": SamplingConfig(temperature=temperature),
        "generator": torch.Generator(pair.target.device).manual_seed(seed),
    }
    stand_in = cast("LanguageModel", target)
    if tokens == 1:
        result = autoregressive_decode(stand_in, prompts, **options)
    else:
        result = speculative_decode(
            stand_in, proposer, prompts, num_draft_tokens=tokens - 1, verification=_accept_nothing, **options
        )
    yield from _pieces(result, target, proposer, (batch, context, tokens, temperature))


def _time_replayed(
    pair: Pair, batch: int, context: int, tokens: int, temperature: float, seed: int, watch: Stopwatch
) -> Iterator[tuple[Key, float]]:
    """The same of a captured step and of its pieces, captured too."""
    generator = torch.Generator(pair.target.device).manual_seed(seed)
    prompts, sampling = _prompts(pair, batch, context, seed), SamplingConfig(temperature=temperature)
    timers = replayed_pieces(pair, watch, prompts, tokens, sampling, generator, _accept_nothing)
    for _ in range(STEPS):
        spent = {name: timer() for name, timer in timers.items()}
        forward, draft, lookup = (spent.get(name, 0.0) for name in ("target", "draft", "ngram"))
        rest = spent["step"] - forward - draft  # no lookup is in this step
        yield from _costs((batch, context, tokens, temperature), forward, rest, draft, lookup)


def _prompts(pair: Pair, batch: int, context: int, seed: int) -> list[torch.Tensor]:
    ids = torch.Generator().manual_seed(seed)
    return [torch.randint(0, pair.target.vocab_size, (context,), generator=ids) for _ in range(batch)]


def _pieces(
    result: DecodeResult, target: _TimedTarget, proposer: _TimedProposer, point: Point
) -> Iterator[tuple[Key, float]]:
    passes = target.seconds[-len(result.step_s) :]  # those before are of the prefill
    drafts = proposer.seconds or [0.0] * len(passes)
    lookups = proposer.lookup_seconds or [0.0] * len(passes)
    steps = list(zip(result.step_s, passes, drafts, lookups, strict=True))
    for whole, forward, draft, lookup in steps[1:]:  # the first warms up
        yield from _costs(point, forward, whole - forward - draft - lookup, draft, lookup)


def _costs(point: Point, forward: float, rest: float, draft: float, lookup: float) -> Iterator[tuple[Key, float]]:
    """Seconds of one step as the pieces of the table, in milliseconds."""
    batch, context, tokens, temperature = point
    yield ("target", batch, context, tokens, temperature), forward * 1e3
    yield ("sampling", batch, context, tokens, temperature), rest * 1e3
    if tokens > 1:
        yield ("draft", batch, context, tokens - 1, temperature), draft * 1e3
        yield ("ngram", batch, context, tokens - 1, temperature), lookup * 1e3


def _accept_nothing(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """Do all the work of verification and keep one token, so that every call takes the same number of steps."""
    verdict = verify(target_probs, draft_probs, draft_tokens, generator)
    return Verification(torch.zeros_like(verdict.num_accepted), verdict.next_token)
