"""Several processes that run the same blocks in step, because each holds a part of the target.

Whatever could turn out differently in them - what is on disk, what took how long, what failed - is decided by the first
and told to the others, through the store that torchrun keeps for its processes. The first alone writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.distributed import PrefixStore, TCPStore

from specdec_lib.config import StudyParams
from specdec_lib.machine.telemetry import of_all_devices
from specdec_lib.models.tensor_parallel import check_processes
from specdec_lib.study.cell_files import Row

T = TypeVar("T")
FOR_LONG = timedelta(days=30)  # who watches the processes ends them sooner
ALONE_S = 10.0  # how long a process that failed waits for the others to come as well
LOOK_S = 0.02  # between looks whether they have
LOST, GO_ON = "lost", "go on"


class LostError(RuntimeError):
    """This process can no longer keep in step with the others; says why."""


class Team:
    """The processes of one worker; by default it is alone.

    Args:
        rank: of this process.
        store: where the processes leave what they tell each other.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None):
        self.rank, self.size, self.store, self.round = rank, size, store, 0

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def share(self, value: Any, failure: object = None) -> list[Any]:
        """What each process gave here, by rank; waits for all of them.

        Args:
            value: JSON-ready.
            failure: why this process failed. The others may hang in the middle of an exchange with it, and are not
                waited for longer than `ALONE_S`.

        Raises:
            LostError: this process failed and the others did not.
        """
        if self.size == 1:
            return [value]
        keys = [self._key(rank) for rank in range(self.size)]
        self.store.set(keys[self.rank], json.dumps([value, bool(failure)]))
        if failure:
            self._wait_for_others_to_fail(keys, failure)
        self.store.wait(keys, FOR_LONG)
        shared = [json.loads(self.store.get(key)) for key in keys]
        if any(failed for _, failed in shared) and self._settle(GO_ON) == LOST:
            raise LostError(f"process {self.rank} of {self.size} came too late to one that had failed")
        if self.round:
            self.store.delete_key(self._key(self.rank, self.round - 1))  # all have been here since, and have read it
        self.round += 1
        return [value for value, _ in shared]

    def _key(self, rank: int, turn: int | None = None) -> str:
        return f"{self.round if turn is None else turn} {rank}"

    def _wait_for_others_to_fail(self, keys: list[str], failure: object) -> None:
        end = time.monotonic() + ALONE_S
        while not self.store.check(keys):
            if time.monotonic() > end and self._settle(LOST) == LOST:
                raise LostError(f"process {self.rank} of {self.size} failed alone: {failure}")
            time.sleep(LOOK_S)

    def _settle(self, verdict: str) -> str:
        """What becomes of a round in which one failed: whoever comes first says it for all."""
        settled: bytes = self.store.compare_set(f"{self.round} verdict", "", verdict)
        return settled.decode()

    def decide(self, make: Callable[[], T]) -> T:
        """What the first process makes of it; JSON-ready."""
        made: T = self.share(make() if self.leads else None)[0]
        return made


def join(params: StudyParams) -> Team:
    """The team of this process, by the environment that torchrun made; takes the device that is this process's own.

    Raises:
        ValueError: the study needs another number of processes, or more devices than there are.
    """
    if params.tensor_parallel == 1:
        return Team()
    check_processes(params.tensor_parallel, params.device)
    if params.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return Team(int(os.environ["RANK"]), params.tensor_parallel, PrefixStore("specdec", store))


def together(outcomes: Sequence[Row]) -> Row:
    """The columns of a repetition from what each process has to say of it.

    Times and counters are the first one's; bytes and joules are the sums over all. Where one failed, all did.
    """
    first = outcomes[0]
    if len(outcomes) == 1:
        return first
    if failure := first_failure([outcome.get("error") for outcome in outcomes]):
        return {"status": "failed", "error": failure}
    if len({str(outcome["tokens_sha256"]) for outcome in outcomes}) > 1:
        return {"status": "failed", "error": "the processes decoded different tokens, so that none is to be trusted"}
    return first | of_all_devices(outcomes)


def first_failure(failures: Sequence[object]) -> str | None:
    """Of what each process failed of, by rank, the first; says whose if not all failed alike."""
    found = [(rank, failure) for rank, failure in enumerate(failures) if failure]
    if not found:
        return None
    rank, failure = found[0]
    return str(failure) if len({*failures}) == 1 else f"{failure} (process {rank} of {len(failures)})"
