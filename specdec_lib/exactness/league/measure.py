"""Draw samples of every line of the league, and greedy texts of every way; each result is on disk at once.

A line has a budget of seconds of sampling over all runs. A run that is killed goes on where it stopped: what a line has
is kept, and is drawn on if its budget grows. Each call of an engine has a seed of its own.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from specdec_lib.config import cache_folder
from specdec_lib.exactness.joint_law import pairs_at
from specdec_lib.exactness.league.law import as_text, laws, laws_by_logits, pairs
from specdec_lib.exactness.league.subject import GREEDY_GAMMA, Line, Subject, Way, lines_of
from specdec_lib.exactness.league.tiny_models import FORMAT, GREEDY_LENGTH, PROMPTS, greedy_prompts, tiny_models
from specdec_lib.exactness.target_law import Law, count_outcomes
from specdec_lib.machine.files import write_atomically
from specdec_lib.machine.own_environment import ServedProcess

LOAD_S, ANSWER_S = 600.0, 240.0  # the most that loading and one answer may take
CALL_S = 4.0  # about what one call of `sample` is to take
FIRST_SAMPLES = 8  # of each prompt, in the first call
MOST_PER_CALL = 20_000
HALVES = 2  # the samples are kept in two parts: one says where a bias is, the other how large


@dataclass(frozen=True)
class Budget:
    """How much is spent."""

    line_s: float = 30.0  # seconds of sampling for a line, in all runs together
    samples: int = 50_000  # of each prompt, at most
    subject_s: float = 1800.0  # seconds for a subject in one run, loading included


def measure(subjects: Sequence[Subject], folder: Path, budget: Budget) -> None:
    """Measure what is not measured yet, one subject after another, into `folder`."""
    for subject in subjects:
        reason = subject.absent or _install(subject)
        with _Processes(subject) as processes:
            ends = time.monotonic() + budget.subject_s
            for (way, gamma), lines in groupby(lines_of(subject), key=lambda line: (line.way, line.num_draft_tokens)):
                group = _Group(processes, way, gamma, list(lines), folder, budget, ends)
                if reason or way.untestable:
                    group.write_reasons(group.lines, reason or way.untestable)
                else:
                    group.run()


def _install(subject: Subject) -> str:
    """Why the subject cannot be run; empty if it can."""
    if subject.own_environment is None:
        return ""
    outcome = subject.own_environment.install()
    return f"not installed: {outcome}" if outcome.startswith("failed") else ""


class _Processes:
    """Processes of a subject, one at a time: one for each load, or the same for all where it can load again."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.process: ServedProcess | None = None

    def serving(self, way: Way, num_draft_tokens: int, dtype: str) -> ServedProcess:
        """A process that serves this way; RuntimeError if it cannot be loaded."""
        subject = self.subject
        settings: dict[str, Any] = {"subject": subject.name, "way": asdict(way), "models": tiny_models()[subject.reads]}
        settings |= {"num_draft_tokens": num_draft_tokens, "dtype": dtype, "threads": 1}
        if self.process and subject.reloads and self.process.process.poll() is None:
            self.process.load(settings, LOAD_S)
            return self.process
        self.end()
        log = (
            cache_folder() / "league" / "logs" / f"{_slug(f'{subject.name} {way.name} {num_draft_tokens} {dtype}')}.log"
        )
        environ = {"OMP_NUM_THREADS": "1", **subject.environ}
        self.process = ServedProcess(subject.python, subject.file, settings, log, load_s=LOAD_S, environ=environ)
        return self.process

    def end(self) -> None:
        """End the process."""
        if self.process:
            self.process.__exit__()
        self.process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


@dataclass(frozen=True)
class _Group:
    """The lines of one way at one draft length: what is loaded together."""

    processes: _Processes
    way: Way
    num_draft_tokens: int
    lines: list[Line]
    folder: Path
    budget: Budget
    ends: float

    def run(self) -> None:
        """Greedy texts first, then the samples: an engine may change a draft when it samples."""
        subject = self.processes.subject
        for place, dtype in enumerate(subject.dtypes):
            lines = [line for line in self.lines if self._wanting(line)] if place == 0 else []
            texts = greedy_file(self.folder, subject, self.way, dtype)
            greedy = self.way.greedy and self.num_draft_tokens in (0, _greedy_gamma(self.way))
            greedy = greedy and "tokens" not in read_result(texts)
            if not (greedy or lines):
                continue
            print(f"{subject.name}: {self.way.name}, gamma {self.num_draft_tokens}, {dtype}", flush=True)
            try:
                if time.monotonic() > self.ends:
                    raise RuntimeError("the time limit of the subject was reached")
                process = self.processes.serving(self.way, self.num_draft_tokens, dtype)
            except RuntimeError as error:
                self.write_reasons(lines, f"not loaded: {error}")
                if greedy:
                    _write(texts, {"reason": f"not loaded: {error}"})
                continue
            if greedy:
                self._greedy(process, texts)
            for line in lines:
                self._sample(process, line)

    def _greedy(self, process: ServedProcess, path: Path) -> None:
        try:
            given = {"prompts": greedy_prompts(), "length": GREEDY_LENGTH}
            found: dict[str, Any] = {"tokens": process.ask({"call": "greedy", **given}, ANSWER_S)["value"]}
        except RuntimeError as error:
            found = {"reason": f"failed: {error}"}
        _write(path, {"version": process.version} | found)

    def _sample(self, process: ServedProcess, line: Line) -> None:
        """Draw what the line's budget allows, and write after every call."""
        path = line_file(self.folder, line)
        found = {key: value for key, value in read_result(path).items() if key != "reason"} or _new(line)
        try:
            known = self._laws(process, line)
            found |= {"version": process.version, "law": pairs(known, line.length)}
            if not self.way.own_model:
                found["draft_law"] = pairs(laws("draft", line.sampling, line.length), line.length)
            n = FIRST_SAMPLES
            while time.monotonic() < self.ends and self._wanting_more(found):
                n = min(n, MOST_PER_CALL, self.budget.samples - found["samples"])
                started = time.monotonic()
                drawn = process.ask(question(line, n, found["calls"]), ANSWER_S)["value"]
                took = time.monotonic() - started
                _count(found, drawn, known, line, n)
                found["seconds"] += took
                found["date"] = datetime.now(UTC).date().isoformat()
                _write(path, found)
                n = max(1, int(n * min(CALL_S / max(took, 1e-3), 20.0)))
        except (RuntimeError, ValueError) as error:
            _write(path, found | {"reason": f"failed: {error}"})

    def _laws(self, process: ServedProcess, line: Line) -> list[Law]:
        if not self.way.own_model:
            return laws("target", line.sampling, line.length)

        def logits(texts: list[list[int]]) -> list[list[float]]:
            found: list[list[float]] = process.ask({"call": "logits", "texts": texts}, ANSWER_S)["value"]
            return found

        return laws_by_logits(logits, line.sampling, line.length)

    def _wanting(self, line: Line) -> bool:
        """Whether the line is to be sampled: it has the reason of an earlier failure only, or may have more."""
        found = read_result(line_file(self.folder, line))
        return bool(line.sampling.temperature) and (not found.get("samples") or self._wanting_more(found))

    def _wanting_more(self, found: dict[str, Any]) -> bool:
        return bool(found["seconds"] < self.budget.line_s and found["samples"] < self.budget.samples)

    def write_reasons(self, lines: Sequence[Line], reason: str) -> None:
        """Write why these lines are not tested, where nothing was measured before."""
        print(f"  {reason}", flush=True)
        for line in lines:
            path = line_file(self.folder, line)
            if not read_result(path).get("samples"):
                _write(path, _new(line) | {"reason": reason})


def _greedy_gamma(way: Way) -> int:
    return GREEDY_GAMMA if GREEDY_GAMMA in way.gammas else way.gammas[-1]


def line_file(folder: Path, line: Line) -> Path:
    """Where the result of a line is."""
    return folder / _slug(line.subject.name) / f"{_slug(line.name)}.json"


def greedy_file(folder: Path, subject: Subject, way: Way, dtype: str) -> Path:
    """Where the greedy texts of a way are."""
    return folder / _slug(subject.name) / f"greedy-{_slug(f'{way.name} {dtype}')}.json"


def log_of(served: str) -> Path:
    """Where a process writes what its engine prints."""
    return cache_folder() / "league" / "logs" / f"{_slug(served)}.log"


def _slug(name: str) -> str:
    """A file's name: readable, and unique by a hash."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return f"{plain[:60].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_result(path: Path) -> dict[str, Any]:
    """A result of these models; empty if there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if found.get("models") == FORMAT else {}


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"models": FORMAT} | found) + "\n")


def _new(line: Line) -> dict[str, Any]:
    parts = range(HALVES), PROMPTS, range(line.length - 1)
    empty: list[Any] = [[[{} for _ in parts[2]] for _ in parts[1]] for _ in parts[0]]
    return {"line": line.name, "samples": 0, "seconds": 0.0, "calls": 0, "counts": empty}


def question(line: Line, n: int, call: int) -> dict[str, Any]:
    """What a process is asked for n samples of each prompt; each call has a seed of its own."""
    seed = int.from_bytes(hashlib.sha256(f"{line.name} {call}".encode()).digest()[:4], "big") >> 1
    asked: dict[str, Any] = {
        "prompts": [list(prompt) for prompt in PROMPTS],
        "n": n,
        "seed": seed,
        "length": line.length,
    }
    return {"call": "sample", **asked, **vars(line.sampling)}


def _count(found: dict[str, Any], drawn: list[list[list[int]]], known: list[Law], line: Line, n: int) -> None:
    """Add what was drawn to the counts. ValueError if it has another shape than was asked for."""
    shapes = {(len(texts), len(text)) for texts in drawn for text in texts}
    if len(drawn) != len(PROMPTS) or shapes != {(n, line.length)}:
        raise ValueError(
            f"{len(drawn)} prompts with texts of {sorted(shapes)}: {n} of {line.length} tokens each are due"
        )
    for prompt, (texts, law) in enumerate(zip(drawn, known, strict=True)):
        for half, counts in enumerate(found["counts"]):
            outcomes: Law = dict(count_outcomes(texts[half::HALVES], law))
            for position, seen in enumerate(counts[prompt]):
                more = as_text(pairs_at(outcomes, position))
                counts[prompt][position] = dict(Counter(seen) + Counter(more))
    found["samples"] += n
    found["calls"] += 1


def results(subjects: Sequence[Subject], folder: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    """What is on disk of every line; empty where there is nothing yet."""
    for subject in subjects:
        for line in lines_of(subject):
            yield line, read_result(line_file(folder, line))
