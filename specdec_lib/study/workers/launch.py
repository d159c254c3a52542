"""How a worker is started, in one process or several, and how it ends: `python launch.py NUMBER COMMAND...`.

Started so, this file supervises NUMBER processes that run COMMAND, with torchrun's own agent, for a target that is
spread over several devices. When one process dies all are killed, and this process ends with the reason of the first.
It imports nothing of the package, whose imports take seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

REFUSED, UNWRITABLE, LOST = 2, 3, 4  # exit codes with a last line that begins with ERROR
ERROR = "error: "
END_WITH_PARENT = "--end-with-parent"  # an option of the worker
PR_SET_PDEATHSIG = 1  # of Linux' prctl
TRACEBACK_S = 0.5  # for a process to print where it is and end
RANK_PROCESS = "rank-process"  # what this file starts itself with, once for each process
DEATHS: dict[int, str] = {
    signal.SIGKILL: "killed by SIGKILL - perhaps because memory ran out",
    signal.SIGSEGV: "killed by SIGSEGV - a crash in native code",
    signal.SIGABRT: "killed by SIGABRT - native code gave up, perhaps because memory ran out",
}


def in_processes(command: Sequence[str], number: int) -> tuple[str, ...]:
    """The command that runs `command` in so many processes; itself for one."""
    return tuple(command) if number == 1 else (sys.executable, "-P", __file__, str(number), *command)


def describe_death(number: int) -> str:
    """What it means that a process was killed by this signal."""
    return DEATHS.get(number, f"killed by {signal.Signals(number).name}")


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, for whatever reason; on Linux only.

    Standard input is a pipe of the parent that never gets data: if it has ended, so has the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([sys.stdin], [], [], 0)[0]:
        os._exit(1)


def launch(number: int, command: Sequence[str]) -> int:
    """Run `command` in so many processes of this machine until all have ended, or one has failed; the exit code."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # one line below says what happened
    config = LaunchConfig(  # as torchrun --standalone
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # of these processes; the supervisor starts fresh ones
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, sys.executable)("-P", __file__, RANK_PROCESS, str(os.getpid()), *command)
    except ChildFailedError as error:
        return _exit_code({rank: failure.exitcode for rank, failure in error.failures.items()}, number)
    return 0


def _exit_code(codes: Mapping[int, int], number: int) -> int:
    """The exit code for the failed processes, by rank; prints the reason where the process could not.

    A signal from outside comes first, because it led to the others. SIGTERM, with which the agent ends processes,
    comes last.
    """
    rank, code = min(codes.items(), key=lambda failure: (failure[1] == -signal.SIGTERM, failure[1] >= 0))
    if code >= 0:
        return code  # the process has said why
    print(f"{ERROR}process {rank} of {number} was {describe_death(-code)}", file=sys.stderr, flush=True)
    return LOST


def _print_tracebacks(*_: Any) -> None:
    """Let the faulthandler of each process print where it is, one after another, because they share a stream."""
    import psutil

    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended
            process.send_signal(signal.SIGABRT)
            deadline = time.monotonic() + TRACEBACK_S
            while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.01)  # it is left to the agent to collect it


if __name__ == "__main__":
    end_with_parent()
    if sys.argv[1] != RANK_PROCESS:
        signal.signal(signal.SIGABRT, _print_tracebacks)
        sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
    if os.getppid() == int(sys.argv[2]):  # else the parent has ended
        os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - the command that this file was given
    sys.exit(1)
