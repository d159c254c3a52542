"""A process that loads a study's pair once and runs blocks of it: `python -m specdec_lib.study.workers.worker TASK`.

TASK is the JSON of a `WorkerTask`; with `--end-with-parent` before it the worker ends when the process that started it
ends. A target that is spread over several devices has as many processes, which torchrun started (see `launch.py`). All
decode alike; the first decides and writes.

The worker leaves everything in the task's folder: a file for each finished cell, its environment, and a heartbeat. It
ends with 0 when its blocks are done. With one line on standard error it ends with 2 if the study cannot run here, 3 if
the folder cannot be written, and 4 if another process of its team was lost.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from specdec_lib.config import StudyParams
from specdec_lib.machine.environment import check_device, check_product, describe_environment, engine_facts
from specdec_lib.machine.files import writing
from specdec_lib.models.pair import load_study_pair
from specdec_lib.study import transcripts
from specdec_lib.study.profile import measure_profile
from specdec_lib.study.run_folder import add_facts, write_environment
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.workers import heartbeat
from specdec_lib.study.workers.launch import END_WITH_PARENT, ERROR, LOST, REFUSED, UNWRITABLE, end_with_parent
from specdec_lib.study.workers.team import LostError, Team, join


@dataclass(frozen=True)
class WorkerTask:
    """What a worker does."""

    params: StudyParams
    folder: Path
    blocks: tuple[int, ...] | None = None  # their numbers in the study's plan; None for all
    skip: tuple[str, ...] = ()  # ids of cells not to be tried
    machine: bool = True  # also measure calibration, costs of a step, expected acceptance and transcripts

    def to_json(self) -> str:
        return TypeAdapter(WorkerTask).dump_json(self).decode()


def work(task: WorkerTask) -> None:
    """Do a task in this process; the rows are in its folder afterwards.

    ValueError if the study cannot run here at all, RuntimeError if the folder cannot be written or a process was lost.
    """
    team = join(task.params)
    if not team.leads:
        transformers.utils.logging.disable_progress_bar()
    with contextlib.nullcontext() if team.leads else contextlib.redirect_stdout(io.StringIO()):
        _work(task, team)
    if team.size > 1:
        torch.distributed.destroy_process_group()


def _work(task: WorkerTask, team: Team) -> None:
    runner = _load(task, team)
    folder = task.folder
    with writing(folder):
        if team.leads:
            # The supervisor notes the end of this run by its id, even if nothing is left to run.
            heartbeat.write_heartbeat(folder, heartbeat.LOAD, runner.run_id)
        runner.run(task.blocks, task.skip)
        if team.leads:
            add_facts(folder, runner.run_id, **engine_facts(runner.pair))  # what was compiled and captured by now
        if task.machine and (measure_profile(runner) or not (folder / transcripts.FILE).exists()):
            transcripts.measure_transcripts(runner)


def _load(task: WorkerTask, team: Team) -> BlockRunner:
    """Check the machine, load the pair, and write what the run computes with."""
    params, folder = task.params, task.folder
    check_device(params)
    with writing(folder):
        if team.leads:
            heartbeat.write_heartbeat(folder, heartbeat.LOAD)
    facts = describe_environment(params)
    check_product(params, (facts["cuda"] or {}).get("product"))
    pair = load_study_pair(params)
    facts |= engine_facts(pair) | {"target_id": pair.target_id, "draft_id": pair.draft_id, "files": pair.files}
    runner = BlockRunner(params, folder, pair, team)
    with writing(folder):
        if team.leads:
            write_environment(folder, facts | {"source": asdict(runner.source)}, runner.run_id)
    return runner


def main(arguments: Sequence[str]) -> int:
    """Run one worker; returns its exit code."""
    *options, text = arguments
    if END_WITH_PARENT in options:
        end_with_parent()
    try:
        work(TypeAdapter(WorkerTask).validate_json(text))
    except (ValueError, RuntimeError) as error:
        code = REFUSED if isinstance(error, ValueError) else LOST if isinstance(error, LostError) else UNWRITABLE
        if code == UNWRITABLE and not isinstance(error.__cause__, OSError):
            raise
        print(f"{ERROR}{error}", file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    faulthandler.enable()  # a crash in native code says where
    sys.exit(main(sys.argv[1:]))
