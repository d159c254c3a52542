"""A process that loads a study's pair once and runs blocks of it: `python -m specdec_lib.study.workers.worker ORDER`.

Where the target is spread over several devices there are as many of it, which torchrun started (see `launch.py`). All
decode alike; the first decides and writes.

ORDER is the JSON of an `Order`. All that the worker has to say lies in the order's folder: a file for each finished
cell, its environment, and a heartbeat. It ends with 0 when its blocks are done, and with one line on
standard error and 2 if the study cannot run here, 3 if the folder cannot be written, 4 if it lost its team.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from specdec_lib.config import StudyParams, validate_params
from specdec_lib.machine.engine_facts import engine_facts
from specdec_lib.machine.environment import (
    add_facts,
    changed_files,
    check_device,
    check_product,
    describe_environment,
    write_environment,
)
from specdec_lib.machine.measurement import MachineMeasurement
from specdec_lib.models.pair import load_study_pair
from specdec_lib.study.blocks import BlockRunner
from specdec_lib.study.cell_files import writing
from specdec_lib.study.workers import heartbeat
from specdec_lib.study.workers.launch import ERROR, LOST, REFUSED, UNWRITABLE, leash
from specdec_lib.study.workers.team import LostError, Team, join


@dataclass(frozen=True)
class Order:
    """What a worker is told."""

    params: StudyParams
    folder: Path
    blocks: tuple[int, ...] | None = None  # numbers of blocks in the study's plan; None for all
    skip: tuple[str, ...] = ()  # ids of cells not to be tried
    machine: bool = True  # measure calibration and the costs of a step too

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
        ValueError: the study cannot run here at all: wrong device, a price of another product, damaged weights, prompts
            that do not fit the models.
        RuntimeError: the folder cannot be written, or another process of the team was lost.
    """
    team = join(order.params)
    if team.leads:
        _work(order, team)
    else:
        transformers.utils.logging.disable_progress_bar()
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            _work(order, team)
    if team.size > 1:
        torch.distributed.destroy_process_group()


def _work(order: Order, team: Team) -> None:
    params, folder = order.params, order.folder
    check_device(params)
    with writing(folder):
        if team.leads:
            heartbeat.beat(folder, heartbeat.LOAD)
    facts = describe_environment(params)
    check_product(params, (facts["cuda"] or {}).get("product"))
    started = time.monotonic()
    pair = load_study_pair(params)
    facts |= {"load_s": round(time.monotonic() - started, 2)} | engine_facts(pair)
    facts |= {"target_id": pair.target_id, "draft_id": pair.draft_id, "files": pair.files}
    if changed := changed_files(folder, pair.files):
        print(f"weights that are not those of the last run here: {', '.join(changed)}", flush=True)
    runner = BlockRunner(params, folder, pair, team)
    with writing(folder):
        if team.leads:
            write_environment(folder, facts | {"source": asdict(runner.source)}, runner.run_id)
            heartbeat.beat(folder, heartbeat.LOAD, runner.run_id)  # whose end is noted even if nothing is left to run
        machine = MachineMeasurement(runner) if order.machine else None
        runner.run(order.blocks, order.skip, machine.take if machine else lambda share: None)
        if team.leads:
            add_facts(folder, runner.run_id, **engine_facts(pair))  # what was compiled and captured on the way
        if machine:
            machine.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m specdec_lib.study.workers.worker", description=__doc__)
    parser.add_argument(
        "order", type=Order.from_json, metavar="ORDER", help="JSON: params, folder, blocks, skip, machine"
    )
    parser.add_argument(
        "--leash", action="store_true", help="end at once when standard input ends, as it does with who"
    )
    options = parser.parse_args(arguments)
    if options.leash:
        leash()
    try:
        work(options.order)
    except ValueError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return REFUSED
    except LostError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return LOST
    except RuntimeError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        print(f"{ERROR}{error}", file=sys.stderr)
        return UNWRITABLE
    return 0


if __name__ == "__main__":
    faulthandler.enable()  # a crash in native code says where
    sys.exit(main())
