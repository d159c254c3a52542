"""How a worker is started, in one process or several, and how it ends: `python launch.py NUMBER COMMAND...`.

Started so, this file watches over NUMBER processes that run COMMAND, as torchrun does it and by torchrun's own agent,
for a target that is spread over several devices. They live and die together: when one dies all are killed, and this
process ends with what the first one died of. It needs nothing of the package, whose imports take seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

REFUSED, UNWRITABLE, LOST = 2, 3, 4  # exit codes with a last line that begins with ERROR
ERROR = "error: "
PR_SET_PDEATHSIG = 1  # of Linux' prctl
ANSWER_S = 1.5  # for all processes to say where they are and end
LEASHED = "leashed"  # what this file starts itself with, once for each process
DEATHS: dict[int, str] = {
    signal.SIGKILL: "killed by SIGKILL - perhaps for want of memory",
    signal.SIGSEGV: "killed by SIGSEGV - a crash in native code",
    signal.SIGABRT: "killed by SIGABRT - native code gave up, perhaps for want of memory",
}


def in_processes(command: Sequence[str], number: int) -> tuple[str, ...]:
    """The command that runs `command` in so many processes; itself for one."""
    return tuple(command) if number == 1 else (sys.executable, "-P", __file__, str(number), *command)


def death(number: int) -> str:
    """What it means that a process was killed by this signal."""
    known = {each.value: f"killed by {each.name}" for each in signal.Signals} | DEATHS
    return known.get(number, f"killed by signal {number}")


def leash() -> None:
    """End this process with who started it, however that ended: standard input is a pipe that they never write to.

    On Linux the kernel sees to it too, also where native code hangs and lets no other thread run.
    """
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    _ask_the_kernel()


def _ask_the_kernel() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def launch(number: int, command: Sequence[str]) -> int:
    """Run `command` in so many processes of this machine until all have ended, or one has failed; the exit code."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what happened is said below, in a line
    config = LaunchConfig(  # as torchrun --standalone
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # of these processes; who watches starts fresh ones
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, sys.executable)("-P", __file__, LEASHED, str(os.getpid()), *command)
    except ChildFailedError as error:
        return _say_why({rank: failure.exitcode for rank, failure in error.failures.items()}, number)
    return 0


def _say_why(codes: Mapping[int, int], number: int) -> int:
    """The exit code for those of processes that failed, by rank: a signal from outside comes before what it led to.

    Last comes SIGTERM, with which the agent ends the others.
    """
    rank, code = min(codes.items(), key=lambda failure: (failure[1] == -signal.SIGTERM, failure[1] >= 0))
    if code >= 0:
        return code  # the process has said why
    print(f"{ERROR}process {rank} of {number} was {death(-code)}", file=sys.stderr, flush=True)
    return LOST


def _ask_where_they_are(*_: Any) -> None:
    """Pass on the question to the processes: their faulthandlers answer, one after another, for they share a stream."""
    import psutil

    processes = psutil.Process().children()
    for process in processes:
        deadline = time.monotonic() + ANSWER_S / len(processes)
        with contextlib.suppress(psutil.Error):  # it has ended
            process.send_signal(signal.SIGABRT)
            while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.01)


def _become(command: Sequence[str], parent: int) -> None:
    """Run `command` in place of this process, to end with its parent from now on: imports take seconds."""
    _ask_the_kernel()
    if os.getppid() == parent:  # else it ended before the kernel was asked
        os.execv(command[0], [*command])  # noqa: S606 - the command that this file was given


if __name__ == "__main__":
    if sys.argv[1] == LEASHED:
        _become(sys.argv[3:], parent=int(sys.argv[2]))
        sys.exit(1)
    leash()
    signal.signal(signal.SIGABRT, _ask_where_they_are)
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
