"""A process that loads a study's pair once and runs blocks of it: `python -m specdec_lib.measure.worker ORDER`.

ORDER is the JSON of an `Order`. All that the worker has to say lies in the order's folder: a file for each finished
cell, its environment, and a heartbeat. It ends with 0 when its blocks are done, with 2 and one line on standard error
if the study cannot run here, with 3 and one line if the folder cannot be written.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specdec_lib.config import StudyParams, validate_params
from specdec_lib.measure import heartbeat
from specdec_lib.measure.blocks import BlockRunner
from specdec_lib.measure.engine_facts import engine_facts
from specdec_lib.measure.environment import (
    add_facts,
    changed_files,
    check_device,
    describe_environment,
    write_environment,
)
from specdec_lib.measure.machine import measure_machine
from specdec_lib.measure.results import writing
from specdec_lib.models.pair import load_study_pair

REFUSED, UNWRITABLE = 2, 3  # exit codes with a line that begins with ERROR
ERROR = "error: "
PR_SET_PDEATHSIG = 1  # of Linux' prctl


@dataclass(frozen=True)
class Order:
    """What a worker is told."""

    params: StudyParams
    folder: Path
    blocks: tuple[int, ...] | None = None  # numbers of blocks in the study's plan; None for all
    skip: tuple[str, ...] = ()  # ids of cells not to be tried
    machine: bool = True  # measure calibration and the costs of a step afterwards

    def to_json(self) -> str:
        facts = {"folder": str(self.folder), "blocks": self.blocks, "skip": self.skip, "machine": self.machine}
        return json.dumps(facts | {"params": self.params.model_dump()})

    @classmethod
    def from_json(cls, text: str) -> Order:
        facts = json.loads(text)
        facts["blocks"] = None if facts["blocks"] is None else tuple(facts["blocks"])
        params = validate_params(facts.pop("params"), source="the worker's order")
        return cls(params, Path(facts.pop("folder")), skip=tuple(facts.pop("skip")), **facts)


def work(order: Order) -> None:
    """Carry out an order in this process; the rows are in its folder afterwards.

    Raises:
        ValueError: the study cannot run here at all: wrong device, damaged weights, prompts that do not fit the models.
        RuntimeError: the folder cannot be written.
    """
    params, folder = order.params, order.folder
    check_device(params)
    with writing(folder):
        heartbeat.beat(folder, heartbeat.LOAD)
    facts = describe_environment(params)
    started = time.monotonic()
    pair = load_study_pair(params)
    facts |= {"load_s": round(time.monotonic() - started, 2)} | engine_facts(pair)
    facts |= {"target_id": pair.target_id, "draft_id": pair.draft_id, "files": pair.files}
    if changed := changed_files(folder, pair.files):
        print(f"weights that are not those of the last run here: {', '.join(changed)}", flush=True)
    runner = BlockRunner(params, folder, pair)
    with writing(folder):
        write_environment(folder, facts | {"source": asdict(runner.source)}, runner.run_id)
        runner.run(order.blocks, order.skip)
        add_facts(folder, runner.run_id, **engine_facts(pair))  # what was compiled and captured on the way
        if order.machine:
            heartbeat.beat(folder, heartbeat.MACHINE, runner.run_id)
            measure_machine(params, pair, folder, runner.source)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m specdec_lib.measure.worker", description=__doc__)
    parser.add_argument(
        "order", type=Order.from_json, metavar="ORDER", help="JSON: params, folder, blocks, skip, machine"
    )
    parser.add_argument(
        "--leash", action="store_true", help="end at once when standard input ends, as it does with who"
    )
    options = parser.parse_args(arguments)
    if options.leash:
        _leash()
    try:
        work(options.order)
    except ValueError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return REFUSED
    except RuntimeError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        print(f"{ERROR}{error}", file=sys.stderr)
        return UNWRITABLE
    return 0


def _leash() -> None:
    """End this process with who started it, however that ended: standard input is a pipe that they never write to.

    On Linux the kernel sees to it too, also where native code hangs and lets no other thread run.
    """
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    faulthandler.enable()  # a crash in native code says where
    sys.exit(main())
