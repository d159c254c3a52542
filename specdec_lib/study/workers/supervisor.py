"""Supervise a worker process: what kills it costs one cell, which leaves a row with the reason."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TextIO

import psutil

from specdec_lib.config import StudyParams
from specdec_lib.machine.files import now
from specdec_lib.study.machine_measurement import leave_unmeasured
from specdec_lib.study.run_folder import add_facts, read_cell, read_environment, whole_runs, write_cell
from specdec_lib.study.workers import heartbeat, launch
from specdec_lib.study.workers.heartbeat import Heartbeat
from specdec_lib.study.workers.worker import WorkerTask

PACKAGES = Path(__file__).resolve().parents[3]  # where this library lies
COMMAND = (sys.executable, "-m", "specdec_lib.study.workers.worker")
POLL_S = 0.2
GRACE_S = 2.0  # from asking a hanging worker for a traceback to killing it
LOAD_LIMIT_S = 4 * 3600.0  # a model may have to be fetched
MACHINE_LIMIT_S = 3600.0
REPETITION_LIMIT_S, TOKEN_LIMIT_S = 600.0, 2.0  # compiling included; a repetition's limit grows with its new tokens


def run_blocks(
    params: StudyParams,
    folder: Path,
    *,
    blocks: Sequence[int] | None = None,
    machine: bool = True,
    limit_s: float | None = None,
    command: Sequence[str] = COMMAND,
) -> None:
    """Run what is missing of these blocks in a worker process, and in fresh ones after each that dies.

    The cell in which a worker died or passed its limit gets a failed row with the reason and is not tried again here.
    Everything else that a dead worker had not written is run again. A target that is spread over several devices has as
    many processes for a worker, which end together.

    Args:
        blocks: numbers in the study's plan; None for all.
        machine: also measure calibration, costs of a step and transcripts.
        limit_s: the longest that one repetition of a cell may take; by default ten minutes and two seconds per token.
        command: what starts a worker.

    Raises:
        ValueError: the study cannot run here at all, in the worker's words.
        RuntimeError: the folder cannot be written, or two workers in a row died outside of any cell.
    """
    task = WorkerTask(params, folder.resolve(), None if blocks is None else tuple(blocks), machine=machine)
    deaths_outside_cells = 0
    while True:
        reason, last = _run_worker(task, command, limit_s)
        if reason is None:
            return
        if last.phase == heartbeat.MACHINE:
            leave_unmeasured(folder, reason)
            return  # all cells were done before
        deaths_outside_cells = 0 if last.row else deaths_outside_cells + 1
        if deaths_outside_cells == 2:
            where = "before their first cell" if last.phase == heartbeat.LOAD else "between two cells"
            raise RuntimeError(f"two workers in a row died {where}: {reason}")
        print(f"a worker died and a fresh one goes on: {reason}", flush=True)
        if last.row:
            cell_id, failed = str(last.row["cell_id"]), last.row | {"status": "failed", "error": reason}
            write_cell(folder, cell_id, [*whole_runs(read_cell(folder, cell_id)), failed])
            task = replace(task, skip=(*task.skip, cell_id))


def _run_worker(task: WorkerTask, command: Sequence[str], limit_s: float | None) -> tuple[str | None, Heartbeat]:
    """Run a worker to its end, which comes too if it passes a limit; the reason if it did not finish, and where."""
    heartbeat.remove_heartbeat(task.folder)
    places = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    start = launch.in_processes(command, task.params.tensor_parallel)
    process = subprocess.Popen(
        [*start, launch.END_WITH_PARENT, task.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        start_new_session=True,  # Ctrl-C reaches the supervisor only, which ends all that the worker started
    )
    with process:
        output = _OutputRelay(process)
        try:
            reason = _watch(task, process, limit_s)
        finally:
            _end(process)
        output.finish()
    last = heartbeat.read_heartbeat(task.folder) or Heartbeat(heartbeat.LOAD)
    code = process.returncode
    if code == launch.REFUSED:
        raise ValueError(output.error())
    if code == launch.UNWRITABLE:
        raise RuntimeError(output.error())
    if last.run_id in read_environment(task.folder).get("runs", {}):
        add_facts(task.folder, str(last.run_id), ended=now())
    heartbeat.remove_heartbeat(task.folder)
    if code < 0:
        reason = reason or launch.describe_death(-code)
    elif code:
        reason = reason or ("" if code == launch.LOST else f"ended with exit code {code}: ") + output.error()
    return reason, last


def _watch(task: WorkerTask, process: subprocess.Popen[bytes], limit_s: float | None) -> str | None:
    """Until the worker has ended; returns the reason if it was for passing a limit."""
    seen, since = heartbeat.read_heartbeat(task.folder), time.monotonic()
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
        if (now := heartbeat.read_heartbeat(task.folder)) != seen:
            seen, since = now, time.monotonic()
        limit = _limit_of(seen, limit_s)
        if time.monotonic() - since > limit:
            process.send_signal(signal.SIGABRT)  # its faulthandler prints a traceback
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            _end(process)
            return f"passed its time limit of {limit:g} s and was stopped"
    return None


def _limit_of(seen: Heartbeat | None, limit_s: float | None) -> float:
    if seen is None or seen.phase == heartbeat.LOAD:
        return LOAD_LIMIT_S
    if seen.row is None:
        return MACHINE_LIMIT_S
    return REPETITION_LIMIT_S + TOKEN_LIMIT_S * int(str(seen.row["max_new_tokens"])) if limit_s is None else limit_s


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the worker and all that it started, in whatever process groups."""
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for each in started:
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait()


class _OutputRelay:
    """Relays what a process prints, in threads, and remembers the end of its standard error."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self.tail, self.errors = "", process.stderr
        streams = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        self.threads = [threading.Thread(target=self._relay, args=each, daemon=True) for each in streams]
        for thread in self.threads:
            thread.start()

    def _relay(self, stream: IO[bytes], to: TextIO) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while data := os.read(stream.fileno(), 65536):
            text = decoder.decode(data)
            to.write(text)
            to.flush()
            if stream is self.errors:
                self.tail = (self.tail + text)[-4000:]

    def finish(self) -> None:
        """Wait until everything is relayed."""
        for thread in self.threads:
            thread.join(GRACE_S)

    def error(self) -> str:
        """The last error that the process named on standard error, else the last line there."""
        lines = self.tail.strip().splitlines()
        named = [line for line in lines if line.startswith(launch.ERROR)]
        return (named or lines)[-1].removeprefix(launch.ERROR) if lines else "it gave no reason"
