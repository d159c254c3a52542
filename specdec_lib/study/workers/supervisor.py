"""Watch over a worker process: what kills it costs one cell, which leaves a row with the reason."""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import psutil

from specdec_lib.config import StudyParams
from specdec_lib.machine.environment import read_environment, stamp_end
from specdec_lib.machine.measurement import leave_unmeasured
from specdec_lib.study.cell_files import read_cell, whole_runs, write_cell
from specdec_lib.study.workers import heartbeat, worker
from specdec_lib.study.workers.heartbeat import Heartbeat
from specdec_lib.study.workers.launch import ERROR, LOST, REFUSED, UNWRITABLE, death, in_processes

PACKAGES = Path(__file__).resolve().parents[3]  # where this very library lies
COMMAND = (sys.executable, "-m", "specdec_lib.study.workers.worker")
LOOK_S = 0.2  # between looks at a worker
MOST_READS = 64  # of what it prints, in one look
GRACE_S = 2.0  # from asking a stuck worker where it is to killing it
LOAD_LIMIT_S = 4 * 3600.0  # a model may have to be fetched
MACHINE_LIMIT_S = 3600.0
REPETITION_LIMIT_S, TOKEN_LIMIT_S = 600.0, 2.0  # compiling included; a repetition's limit grows with its new tokens


@dataclass(frozen=True)
class Ending:
    """How a worker ended: the reason if it did not finish, and where it was."""

    reason: str | None
    last: Heartbeat


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
    What else a dead worker had not written is run again. A target that is spread over several devices has as many
    processes for a worker, which live and die together.

    Args:
        blocks: numbers in the study's plan; None for all.
        machine: also measure calibration and the costs of a step.
        limit_s: the longest that one repetition of a cell may take; by default ten minutes and two seconds per token.
        command: what starts a worker.

    Raises:
        ValueError: the study cannot run here at all, in the worker's words.
        RuntimeError: the folder cannot be written, or two workers in a row died with no cell to blame.
    """
    order = worker.Order(params, folder.resolve(), None if blocks is None else tuple(blocks), machine=machine)
    in_vain = 0
    while (ending := _run_worker(order, command, limit_s)).reason is not None:
        if ending.last.phase == heartbeat.MACHINE:
            leave_unmeasured(folder, ending.reason)
            order, in_vain = replace(order, machine=False), 0
            continue
        failed = _blame(folder, ending)
        in_vain = 0 if failed else in_vain + 1
        if in_vain == 2:
            where = "before their first cell" if ending.last.phase == heartbeat.LOAD else "between two cells"
            raise RuntimeError(f"two workers in a row died {where}: {ending.reason}")
        print(f"a worker died and a fresh one goes on: {ending.reason}", flush=True)
        order = replace(order, skip=(*order.skip, *filter(None, [failed])))


def _blame(folder: Path, ending: Ending) -> str | None:
    """Give the cell in which a worker died a failed row, unless its repetition is on disk; returns its id."""
    row = ending.last.row
    if row is None:
        return None
    cell_id = str(row["cell_id"])
    rows = read_cell(folder, cell_id)
    if any(all(known[name] == row[name] for name in ("run_id", "repetition")) for known in rows):
        return None
    write_cell(folder, cell_id, [*whole_runs(rows), row | {"status": "failed", "error": ending.reason}])
    return cell_id


def _run_worker(order: worker.Order, command: Sequence[str], limit_s: float | None) -> Ending:
    """Start a worker, pass on what it says, and end it if it passes a limit or this process is interrupted."""
    heartbeat.forget(order.folder)
    places = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [*in_processes(command, order.params.tensor_parallel), "--leash", order.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        start_new_session=True,  # Ctrl-C reaches who watches, and all that the worker starts ends with it
    )
    with process, contextlib.ExitStack() as stack:
        stack.callback(_end, process)
        echo = _Echo(process)
        overdue = _watch(order, process, echo, limit_s)
    last = heartbeat.read_heartbeat(order.folder) or Heartbeat(heartbeat.LOAD)
    code = process.returncode
    if code == REFUSED:
        raise ValueError(echo.error())
    if code == UNWRITABLE:
        raise RuntimeError(echo.error())
    if last.run_id in read_environment(order.folder).get("runs", {}):
        stamp_end(order.folder, str(last.run_id))
    heartbeat.forget(order.folder)
    return Ending(overdue or _reason(code, echo.error()), last)


def _watch(order: worker.Order, process: subprocess.Popen[bytes], echo: _Echo, limit_s: float | None) -> str | None:
    """Until the worker has ended; returns the reason if it was for passing a limit."""
    seen, since = heartbeat.read_heartbeat(order.folder), time.monotonic()
    while process.poll() is None:
        echo.pass_on(LOOK_S)
        if (now := heartbeat.read_heartbeat(order.folder)) != seen:
            seen, since = now, time.monotonic()
        limit = _limit(seen, limit_s)
        if time.monotonic() - since > limit:
            process.send_signal(signal.SIGABRT)  # faulthandler says where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            _end(process)
            echo.pass_on(0)
            return f"passed its time limit of {limit:g} s and was stopped"
    echo.pass_on(0)
    return None


def _limit(beat: Heartbeat | None, limit_s: float | None) -> float:
    if beat is None or beat.phase == heartbeat.LOAD:
        return LOAD_LIMIT_S
    if beat.row is None:
        return MACHINE_LIMIT_S
    return REPETITION_LIMIT_S + TOKEN_LIMIT_S * int(str(beat.row["max_new_tokens"])) if limit_s is None else limit_s


def _reason(code: int, error: str) -> str | None:
    """What an exit code means, None if all is well."""
    if code < 0:
        return death(-code)
    return error if code == LOST else f"ended with exit code {code}: {error}" if code else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the worker, if it lives, and all that it started, in whatever process groups."""
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for each in started:
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait()


class _Echo:
    """Passes on what a process prints, and remembers the end of its standard error."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self.selector = selectors.DefaultSelector()
        self.tail = ""
        decoder = codecs.getincrementaldecoder("utf-8")
        for stream, to in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert stream is not None
            self.selector.register(stream, selectors.EVENT_READ, (to, decoder("replace"), stream is process.stderr))

    def pass_on(self, timeout_s: float) -> None:
        """What there is by now, within bounds; waits this long for something to come."""
        if not self.selector.get_map():
            time.sleep(timeout_s)
        for _ in range(MOST_READS):
            for key, _ in (events := self.selector.select(timeout_s)):
                self._pass_on(key)
            timeout_s = 0
            if not events:
                return

    def _pass_on(self, key: selectors.SelectorKey) -> None:
        to: TextIO
        to, decoder, is_error = key.data
        data = os.read(key.fd, 65536)
        if not data:
            self.selector.unregister(key.fileobj)
        text = decoder.decode(data)
        to.write(text)
        to.flush()
        if is_error:
            self.tail = (self.tail + text)[-4000:]

    def error(self) -> str:
        """The last error that the process named on standard error, else the last line there."""
        lines = self.tail.strip().splitlines()
        named = [line for line in lines if line.startswith(ERROR)]
        return (named or lines)[-1].removeprefix(ERROR) if lines else "it gave no reason"
