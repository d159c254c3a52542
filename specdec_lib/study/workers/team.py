"""Several processes that run the same blocks in step, because each holds a part of the target.

The first process decides whatever could differ between them, such as what is on disk and what took how long. The others
learn it through the store that torchrun keeps. Only the first writes. A process that fails ends, and the supervisor
ends the others, because they may hang in an exchange with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.distributed import PrefixStore, TCPStore

from specdec_lib.config import StudyParams
from specdec_lib.machine.telemetry import of_all_devices
from specdec_lib.models.tensor_parallel import check_processes
from specdec_lib.study.rows.schema import Row

T = TypeVar("T")
NO_LIMIT = timedelta(days=30)  # the supervisor ends the processes sooner


class LostError(RuntimeError):
    """This process can no longer keep in step with the others; says why."""


class Team:
    """The processes of one worker, by default one, which exchange values through a store of torch.distributed."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None):
        self.rank, self.size, self.store, self.round = rank, size, store, 0

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def share(self, value: Any) -> list[Any]:
        """What each process gave here, by rank and JSON-ready; waits for all of them."""
        if self.size == 1:
            return [value]
        keys = [f"{self.round} {rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], json.dumps(value))
        self.store.wait(keys, NO_LIMIT)
        if self.round:
            self.store.delete_key(f"{self.round - 1} {self.rank}")  # all have read it since
        self.round += 1
        return [json.loads(self.store.get(key)) for key in keys]

    def decide(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process; JSON-ready."""
        made: T = self.share(make() if self.leads else None)[0]
        return made

    def check(self, error: object) -> None:
        """End this process by a LostError if it failed and others share the target with it."""
        if error and self.size > 1:
            raise LostError(f"process {self.rank} of {self.size} failed: {error}")


def join(params: StudyParams) -> Team:
    """The team of this process, by the environment that torchrun made; takes the device of this process.

    ValueError if the study needs another number of processes, or more devices than there are.
    """
    if params.tensor_parallel == 1:
        return Team()
    check_processes(params.tensor_parallel, params.device)
    if params.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return Team(int(os.environ["RANK"]), params.tensor_parallel, PrefixStore("specdec", store))


def merge_ranks(columns: Sequence[Row]) -> Row:
    """The columns of a repetition from those of each process, by rank.

    Times and counters are the first one's; bytes and joules are the sums over all.
    """
    first = columns[0]
    if len(columns) == 1:
        return first
    if len({str(each["tokens_sha256"]) for each in columns}) > 1:
        return {"status": "failed", "error": "the processes decoded different tokens, so that none is to be trusted"}
    return first | of_all_devices(columns)
