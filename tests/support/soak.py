"""A long sweep of toys with random real faults: `python tests/support/soak.py --minutes 60`, or `make soak`.

First the study runs undisturbed, then again while workers are killed, stopped and short of memory, and the whole run is
killed and started again. Nothing may be lost or doubled, and no process may grow. A round that ended too early is
followed by another, until the time is over.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from faulty_worker import out_of_memory
from quick_worker import hurry
from toy_sweep import cells_in, determined

from specdec_lib.config import StudyParams
from specdec_lib.params_files import load_params
from specdec_lib.study.rows.table import read_results
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.sweep import run_sweep, run_sweep_here
from specdec_lib.study.workers import heartbeat, worker

GROWTH = 0.05  # of resident memory, from after the warm-up to the end of a process
WARM_UP_S, LEAST_S = 20.0, 60.0  # a shorter life says nothing of growth
LOOK_S = 0.5
CELLS_PER_PROMPT = 15


@dataclass
class Memory:
    """Resident bytes of each process over time, by what it is."""

    seen: dict[tuple[str, int], list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))

    def look(self, kind: str, pid: int) -> None:
        with contextlib.suppress(psutil.Error):
            self.seen[kind, pid].append((time.monotonic(), psutil.Process(pid).memory_info().rss))

    def growth(self, warm_up_s: float = WARM_UP_S, least_s: float = LEAST_S) -> dict[str, float]:
        """For each kind of process the largest growth: median of the last tenth over that of the first, less 1."""
        largest: dict[str, float] = {}
        for (kind, _), samples in self.seen.items():
            warm = [rss for when, rss in samples if when - samples[0][0] >= warm_up_s]
            if len(warm) >= 10 and samples[-1][0] - samples[0][0] >= least_s:
                tenth = len(warm) // 10
                grown = statistics.median(warm[-tenth:]) / statistics.median(warm[:tenth]) - 1
                largest[kind] = max(grown, largest.get(kind, -1.0))
        return largest


class Run:
    """A sweep in a process of its own, started anew when it was killed."""

    def __init__(self, params: StudyParams, folder: Path, limit_s: float, memory: Memory):
        self.params, self.folder, self.limit_s, self.memory = params, folder, limit_s, memory
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        arguments = ["--run", str(self.folder), self.params.model_dump_json(), str(self.limit_s)]
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=log, stderr=log)

    def look(self) -> heartbeat.Heartbeat | None:
        """What the worker does, while it decodes; memory is noted."""
        beat = heartbeat.read_heartbeat(self.folder)
        if beat is None or beat.phase != heartbeat.CELL or not psutil.pid_exists(beat.pid):
            return None
        self.memory.look("supervisor", self.process.pid)
        self.memory.look("worker", beat.pid)
        return beat

    def wait(self, until: float = float("inf")) -> bool:
        """Look on until the sweep has ended; False if the time is up before that."""
        while self.process.poll() is None:
            if time.monotonic() > until:
                return False
            self.look()
            time.sleep(max(0.0, min(LOOK_S, until - time.monotonic())))
        return True

    def strike(self, fault: str, pid: int) -> None:
        """One real fault, to the worker `pid` or to the whole run."""
        signals = {"worker killed": signal.SIGKILL, "hang": signal.SIGSTOP, "out of memory": signal.SIGUSR1}
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid if fault == "run killed" else pid, signals.get(fault, signal.SIGKILL))
        if fault == "run killed":
            self.process.wait()
            self.start()


FAULTS = ("worker killed", "out of memory", "hang", "run killed")


def disturb(run: Run, rng: random.Random, mean_s: float, faults: int, until: float) -> Counter[str]:
    """Let so many faults happen at random times, `mean_s` into a worker's decoding, each kind as often."""
    struck: Counter[str] = Counter()
    order = itertools.islice((fault for _ in itertools.count() for fault in rng.sample(FAULTS, len(FAULTS))), faults)
    for fault in order:
        while run.process.poll() is None and run.look() is None:
            time.sleep(0.05)
        ended = run.wait(time.monotonic() + rng.expovariate(1 / mean_s))
        beat = run.look()
        if ended or time.monotonic() > until:
            break
        if beat is not None:
            run.strike(fault, beat.pid)
            struck[fault] += 1
    return struck


def study(num_prompts: int) -> StudyParams:
    small = {"repetitions": 2, "num_prompts": num_prompts, "methods": ["draft", "ngram", "composite"]}
    return load_params("smoke").model_copy(update=small)


def cells_per_second(root: Path) -> float:
    """Of a small study in this process, its second half: the first warms up."""
    first = run_sweep_here(study(4), root / "rate")["cell_id"].nunique()
    started = time.monotonic()
    second = run_sweep_here(study(12), root / "rate")["cell_id"].nunique() - first
    return second / (time.monotonic() - started)


@dataclass
class Verdict:
    """What a soak found; `wrong` is empty if all is well."""

    cells: int
    rows: int
    seconds: float
    calm_cells_per_second: float
    struck: Counter[str]
    failed: int
    growth: dict[str, float]
    wrong: list[str]

    def __str__(self) -> str:
        grown = ", ".join(f"{kind} {growth:+.1%}" for kind, growth in self.growth.items()) or "no life was long enough"
        faults = ", ".join(f"{count} {fault}" for fault, count in self.struck.items())
        return (
            f"{self.cells} cells, {self.rows} rows, {self.seconds / 60:.1f} min; faults: {faults}, which left "
            f"{self.failed} failed cells until the same command ran again; memory: {grown}; "
            f"{'wrong: ' + '; '.join(self.wrong) if self.wrong else 'nothing lost, nothing doubled, nothing grew'}"
        )


def soak(
    root: Path,
    *,
    num_prompts: int,
    seed: int,
    faults: int,
    mean_s: float,
    disturb_s: float = float("inf"),
    limit_s: float = 10.0,
) -> Verdict:
    """Run the study undisturbed, then with faults, then once more for what faults left; compare.

    Args:
        faults: how many, at most.
        mean_s: from a worker's first decoding to the next fault.
        disturb_s: after which faults end.
        limit_s: of one repetition, after which a worker counts as hanging.
    """
    started, memory, params = time.monotonic(), Memory(), study(num_prompts)
    calm = Run(params, root / "undisturbed", limit_s=600.0, memory=memory)
    calm.wait()
    calm_s = time.monotonic() - started
    expected = read_results(root / "undisturbed")
    run = Run(params, root / "disturbed", limit_s, memory)
    struck = disturb(run, random.Random(seed), mean_s, faults, time.monotonic() + disturb_s)
    run.wait()
    failed = sum('"failed"' in text.decode() for text in cells_in(root / "disturbed").values())
    run.limit_s = calm.limit_s
    run.start()
    run.wait()
    found = read_results(root / "disturbed")
    wrong = [f"the last run ended with {run.process.returncode}"] if run.process.returncode else []
    if found.duplicated(["run_id", "cell_id", "repetition"]).any():
        wrong.append("a row is there twice")
    speculative = found[found["method"] != "autoregressive"]  # a baseline runs again beside a cell that does
    if speculative.duplicated(["cell_id", "repetition"]).any():
        wrong.append("a cell was run twice and kept twice")
    if not determined(found).equals(determined(expected)):
        wrong.append("the table is not the undisturbed one")
    if strays := [path.name for path in (root / "disturbed").rglob("*.tmp")]:
        wrong.append(f"left behind: {', '.join(strays)}")
    growth = memory.growth()
    wrong += [f"the {kind} grew by {share:.1%}" for kind, share in growth.items() if share > GROWTH]
    cells, seconds = found["cell_id"].nunique(), time.monotonic() - started
    return Verdict(cells, len(found), seconds, cells / calm_s, struck, failed, growth, wrong)


def work_with_faults(arguments: list[str]) -> int:
    """A worker that runs out of memory in its next decoding when it is told to by a signal."""
    told: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
    real = BlockRunner._decode

    def decode(self, *arguments, **keywords):
        if told:
            told.clear()
            out_of_memory()
        return real(self, *arguments, **keywords)

    BlockRunner._decode = decode
    return worker.main(arguments)


def main() -> int:
    hurry()
    if sys.argv[1:2] == ["--run"]:
        folder, params, limit_s = sys.argv[2:]
        command = (sys.executable, __file__, "--worker")
        study = StudyParams.model_validate_json(params)
        run_sweep(study, Path(folder), limit_s=float(limit_s), command=command)
        return 0
    if sys.argv[1:2] == ["--worker"]:
        return work_with_faults(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="about how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    options = parser.parse_args()
    until, verdicts = time.monotonic() + 60 * options.minutes, list[Verdict]()
    with TemporaryDirectory(prefix="soak-") as place:
        rate = cells_per_second(Path(place))
        while (left := until - time.monotonic()) > LEAST_S or not verdicts:
            num_prompts = max(4, int(rate * left / 3 / CELLS_PER_PROMPT))
            print(f"{rate:.0f} cells per second: {num_prompts} prompts, for a third of {left / 60:.1f} min", flush=True)
            verdict = soak(
                Path(place) / f"round-{len(verdicts)}",
                num_prompts=num_prompts,
                seed=options.seed + len(verdicts),
                faults=10**6,
                mean_s=15.0,
                disturb_s=left / 3,
            )
            print(verdict, flush=True)
            verdicts.append(verdict)
            rate = verdict.calm_cells_per_second
    return 1 if any(verdict.wrong for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
