"""The first minutes on a rented or lent GPU: measurements in order of worth, each on disk at once.

The models have random weights and the shapes of a preset, so that nothing is fetched. On a CPU the shapes are tiny: a
rehearsal. All goes into one file of JSON lines, from which `report.first_page` makes a page anywhere. Measuring needs
PyTorch, transformers, NumPy, SciPy and pandas, and what `make gpu-bundle` packs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from specdec_lib.cli import gpu_check
from specdec_lib.config import CUSTOM_PAIR, StudyParams
from specdec_lib.decoding.captured_loop import drop_captured, new_graphs
from specdec_lib.exactness.adversaries import SETTINGS, enumeration_table
from specdec_lib.machine.environment import describe_environment, engine_facts
from specdec_lib.machine.files import now
from specdec_lib.machine.nvml import READINGS, NvmlUnavailableError, open_device
from specdec_lib.machine.step_costs import measure_step_costs
from specdec_lib.machine.stopwatch import Stopwatch
from specdec_lib.models.pair import TOY, Pair, load_study_pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.study.dry_run.fake_gpu import with_head
from specdec_lib.study.dry_run.memory_plan import needs_of
from specdec_lib.study.run_folder import read_cell
from specdec_lib.study.runner import BlockRunner

FILE = "first.jsonl"
PAIR = "qwen3-8b"
TINY = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
STUDY = {  # of the short sweep
    "weights": "random", "accepted_per_step": [2, 0, 4, 1, 3], "methods": ["draft"], "num_draft_tokens": [4],
    "headline_num_draft_tokens": 4, "temperatures": [0.0], "batch_sizes": [1, 8, 32], "prompt_tokens": [256],
    "max_new_tokens": [128], "num_prompts": 1, "num_axis_prompts": 1, "repetitions": 2, "compare_transformers": False,
}  # fmt: skip
TOKENS = (1, 5, 2, 9, 3, 16)  # of a pass, the most wanted first
REPETITIONS = 3

Row = dict[str, Any]


class TimeIsUpError(BaseException):
    """Nothing that an item catches."""


@dataclass
class First:
    """A session on one machine: its params, its file, and what later items need of earlier ones."""

    params: StudyParams
    path: Path
    ends: float  # time.monotonic
    pair: Pair | None = None
    rows: list[Row] = field(default_factory=list)  # of the short sweep

    def write(self, item: str, seconds: float, **facts: Any) -> None:
        """Append one line, which is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"item": item, "seconds": round(seconds, 3), "at": now(), **facts}, default=str) + "\n"
            )
            file.flush()
            os.fsync(file.fileno())

    def loaded(self) -> Pair:
        """The pair, which an earlier item loads."""
        if self.pair is None:
            raise RuntimeError("the pair was not loaded")
        return self.pair

    def watch(self) -> Stopwatch:
        """Times pieces as the steps of the pair run."""
        target = self.loaded().target
        return Stopwatch(target.device, new_graphs(target))


def first_params(params: StudyParams, folder: Path, pair: str = PAIR) -> StudyParams:
    """The study of the first minutes on the machine of `params`; on a CPU one of tiny shapes, made in `folder`."""
    changes: Row = STUDY | {
        "pair": pair,
        "target": None,
        "draft": None,
        "tensor_parallel": 1,
        "verification": ["token"],
    }
    if params.device == "cpu":
        for role, layers in (("target", 4), ("draft", 2)):
            (folder / role).mkdir(parents=True, exist_ok=True)
            (folder / role / "config.json").write_text(json.dumps(TINY | {"num_hidden_layers": layers}))
            changes[role] = str(folder / role)
        changes |= {"pair": CUSTOM_PAIR, "device_name": "", "batch_sizes": [1, 2], "max_new_tokens": [16]}
    return params.model_copy(update=changes)


def measure_first(params: StudyParams, path: Path, minutes: float) -> Iterator[str]:
    """Measure item by item until the time is up, and say how each went; `path` is begun anew."""
    path.unlink(missing_ok=True)
    first = First(params, path, time.monotonic() + 60 * minutes)
    for item, measure in ITEMS.items():
        if time.monotonic() >= first.ends:
            yield f"{item}: not begun, the time is up"
            continue
        started, lines = time.monotonic(), 0
        try:
            with _until(first.ends), torch.inference_mode():
                for facts in measure(first):
                    first.write(item, time.monotonic() - started, **facts)
                    lines += 1
            outcome = f"{lines} lines"
        except TimeIsUpError:
            outcome = f"cut off after {lines} lines, the time is up"
            first.write(item, time.monotonic() - started, error="the time was up")
        except Exception as error:  # noqa: BLE001 - the next item may work
            outcome = f"failed after {lines} lines: {type(error).__name__}: {' '.join(str(error).split())}"
            first.write(item, time.monotonic() - started, error=outcome)
        yield f"{item}: {outcome} ({time.monotonic() - started:.0f} s)"


@contextmanager
def _until(end: float) -> Iterator[None]:
    """Stop the main thread at this time of `time.monotonic`; within a call of a library, once that returns."""

    def stop(*_: object) -> None:
        raise TimeIsUpError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(end - time.monotonic(), 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _machine(first: First) -> Iterator[Row]:
    """What is there: device, driver, versions, clocks."""
    yield {"environment": describe_environment(first.params)}
    if first.params.device == "cuda":
        try:
            device = open_device()
            yield {"readings": {name: device.read(name) for name in READINGS}, "missing": device.missing}
        except NvmlUnavailableError as error:
            yield {"missing": {"driver": str(error)}}


def _check(first: First) -> Iterator[Row]:
    """Of gpu-check what needs no download; exactness by enumeration alone."""
    toy = first.params.model_copy(update={"pair": TOY, "dtype": "float32"})
    yield {"check": "device", "detail": gpu_check._device(first.params)}
    engines = ("eager", "inductor" if toy.device == "cuda" else "kernels")
    paths = enumeration_table(["draft"], "token", toy.device, engines, SETTINGS[:1])
    wrong = paths[(paths["largest_error"] > paths["tolerance"]) | (paths["unexplained"] > 0)]
    yield {"check": "exactness", "detail": f"{paths['paths'].sum():,} paths, {len(wrong)} of {len(paths)} laws are off"}
    checks = {"telemetry": gpu_check._telemetry, "kernels": gpu_check._kernels, "sweep of toys": gpu_check._sweep}
    for check, run in checks.items():
        try:
            yield {"check": check, "detail": run(toy)}
        except gpu_check.Skipped as reason:
            yield {"check": check, "detail": f"skipped: {reason}"}


def _rates(first: First) -> Iterator[Row]:
    """Bandwidth and matrix rate, as data sheets state them: bytes read and written, and dense operations."""
    device, small = torch.device(first.params.device), first.params.device == "cpu"
    dtype, watch = getattr(torch, first.params.dtype), Stopwatch(torch.device(first.params.device))
    block = torch.ones(2**24 if small else 2**30, device=device)
    other, side = torch.empty_like(block), 512 if small else 8192
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    pieces: dict[str, tuple[Callable[[], object], float]] = {
        "copy, bytes/s": (lambda: other.copy_(block), 2 * block.nbytes),
        "read, bytes/s": (block.sum, block.nbytes),
        f"product of {side} cubed, FLOP/s": (lambda: matrix @ matrix, 2.0 * side**3),
    }
    for name, (piece, amount) in pieces.items():
        times = [watch.seconds(piece) for _ in range(8)][2:]
        yield {"rate": name, "value": amount / min(times), "median": amount / sorted(times)[len(times) // 2]}


def _load(first: First) -> Iterator[Row]:
    """The pair of random weights, compiled."""
    first.pair = load_study_pair(first.params)
    yield {"pair": first.pair.name, **engine_facts(first.pair), **_allocated(first)}


def _steps(first: First) -> Iterator[Row]:
    """The pieces of a step by batch: v(m) and c; each batch on disk when it is measured."""
    context, batches = first.params.prompt_tokens[0], first.params.batch_sizes
    for batch in batches:
        points = [(batch, context, tokens, 0.0) for tokens in (TOKENS if batch == batches[0] else TOKENS[:4])]
        for row in measure_step_costs(first.loaded(), first.watch(), ["draft"], points, REPETITIONS):
            yield {"draft": "model", **row}


def _uncaptured(first: First) -> Iterator[Row]:
    """The same operators one by one at the first batch: what capturing saves."""
    target = first.loaded().target
    points = [(first.params.batch_sizes[0], first.params.prompt_tokens[0], tokens, 0.0) for tokens in TOKENS[:2]]
    target.compiled = False
    try:
        for row in measure_step_costs(first.loaded(), Stopwatch(target.device), ["draft"], points, REPETITIONS):
            yield {"draft": "model", **row}
    finally:
        target.compiled = True


def _sweep(first: First) -> Iterator[Row]:
    """Whole calls of the baseline and of the draft, interleaved, with a given acceptance."""
    folder = first.path.parent / "first-cells"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    runner = BlockRunner(first.params, folder, first.loaded())
    done = set()
    for number, block in enumerate(runner.blocks):
        if block.setting in done:
            continue
        done.add(block.setting)
        runner.run([number])
        for cell in block.cells:
            for row in read_cell(folder, cell.id):
                first.rows.append(row)
                yield {"row": row}


def _memory(first: First) -> Iterator[Row]:
    """The plan for the settings of the short sweep, by a rehearsal in a process that sees no GPU."""
    if first.params.device == "cpu":
        yield {"skipped": "a CPU has no memory of its own to plan"}
        return
    command = [sys.executable, "-m", "specdec_lib.cli.gpu_first", first.params.model_dump_json()]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    for line in done.stdout.splitlines():
        yield {"need": json.loads(line)}


def _head(first: First) -> Iterator[Row]:
    """The same target with a draft head: what a proposal of it costs."""
    pair = first.loaded()
    drop_captured(pair.target)
    first.pair = with_head(pair)
    assert isinstance(first.pair.target, LanguageModel)
    for batch in first.params.batch_sizes[:2]:
        points = [(batch, first.params.prompt_tokens[0], tokens, 0.0) for tokens in TOKENS[1:3]]
        for row in measure_step_costs(first.pair, first.watch(), ["draft"], points, REPETITIONS):
            yield {"draft": "head", **row}


def _allocated(first: First) -> Row:
    return {"allocated_bytes": torch.cuda.memory_allocated()} if first.params.device == "cuda" else {}


ITEMS: dict[str, Callable[[First], Iterator[Row]]] = {
    "machine": _machine,
    "check": _check,
    "rates": _rates,
    "load": _load,
    "steps": _steps,
    "sweep": _sweep,
    "memory": _memory,
    "head": _head,
    "uncaptured": _uncaptured,
}


def plan_memory(params: StudyParams) -> None:
    """Print what each batch of the short sweep needs, one JSON object a line."""
    points = [(batch, params.prompt_tokens[0], params.max_new_tokens[0]) for batch in params.batch_sizes]
    for need in needs_of(params, points, params.num_draft_tokens[0]):
        print(json.dumps(asdict(need)))


if __name__ == "__main__":
    plan_memory(StudyParams.model_validate_json(sys.argv[1]))
