"""Spread a study's blocks over the machines of a Ray cluster: `make run GPU=<name> CLUSTER=<address>`.

Groups of blocks are tasks, each on one device of the type that the params ask for, or on as many of one machine as the
target is spread over. Cells come back as they end and are written by cell id, so that a group may be sent again: what
its lost machine had finished is here already and is not run again. The first group measures its machine as well.
Ray's ports ask for no password: use it on private networks only. Start its nodes with RAY_worker_niceness=0: by default
Ray gives its workers a low priority.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specdec_lib.config import StudyParams
from specdec_lib.machine.files import write_atomically
from specdec_lib.study.blocks import num_blocks, plan
from specdec_lib.study.cell_files import write_cell
from specdec_lib.study.cells import Source
from specdec_lib.study.environment_file import adopt_environment, read_environment
from specdec_lib.study.workers.cluster_task import MACHINE_FILES, GroupTask, Report, code_hash, machine_files, run_group
from specdec_lib.study.workers.supervisor import COMMAND

ADDRESS = "SPECDEC_CLUSTER"  # environment variable with the cluster's address
GROUPS_PER_DEVICE = 2  # each loads the weights once; more of them balance better
LOSSES = 3  # of one group before the run gives up
POLL_S = 2.0  # between checks whether the cluster still has the devices


@dataclass(frozen=True)
class Device:
    """What a task asks Ray for: one device, or those of one machine that the target is spread over."""

    accelerator_type: str | None  # as Ray calls it: A100, H100, H200
    gpus: int
    cpus: int

    @classmethod
    def of(cls, params: StudyParams) -> Device:
        """The devices of a study: of the type that its device's name contains, or the threads that it has here."""
        if params.device == "cuda":
            return cls(params.device_name or None, params.tensor_parallel, params.tensor_parallel)
        return cls(None, 0, torch.get_num_threads() * params.tensor_parallel)

    def on(self, resources: dict[str, float]) -> int:
        """How many a machine with these resources has."""
        if self.accelerator_type and f"accelerator_type:{self.accelerator_type}" not in resources:
            return 0
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(resources.get(name, 0)) // number for name, number in needs.items() if number)


def run_blocks_on_cluster(
    params: StudyParams,
    folder: Path,
    address: str,
    *,
    device: Device | None = None,
    limit_s: float | None = None,
    command: Sequence[str] = COMMAND,
) -> None:
    """Run what is missing of a study on a Ray cluster; cells and environment are in `folder` afterwards.

    Args:
        address: of the cluster, as Ray takes it; "auto" for the one that this machine belongs to.
        device: what each task asks for; by default what the params say.
        limit_s, command: as for `supervisor.run_blocks`, which runs on the machines.

    Raises:
        ValueError: Ray is not installed, there is no cluster, it has no such device, or the study cannot run there.
        RuntimeError: a group of blocks was lost three times, or workers die before their first cell.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        run = _Run(ray, params, folder, device or Device.of(params), command, limit_s)
        while todo := run.missing():
            run.groups(todo)
    finally:
        if ours:
            ray.shutdown()


class _Run:
    """A study in progress on a cluster; arguments as of `run_blocks_on_cluster`."""

    def __init__(
        self,
        ray: Any,
        params: StudyParams,
        folder: Path,
        device: Device,
        command: Sequence[str] = COMMAND,
        limit_s: float | None = None,
    ):
        self.ray, self.params, self.folder, self.device = ray, params, folder, device
        self.command, self.limit_s = tuple(command), limit_s
        self.code, self.attempted = code_hash(), set[int]()
        self.source: dict[str, Any] | None = None  # what the machines of this run compute with

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not finished and were not tried yet.

        Where an earlier run left something, a machine first says what it computes with: it may have another version of
        PyTorch since, and then nothing is finished.
        """
        if self.source is None and "source" in read_environment(self.folder):
            self._devices()
            self._run([()])
        if self.source is None:
            numbers = set(range(num_blocks(self.params)))
        else:
            blocks = enumerate(plan(self.params, Source(**self.source)))
            numbers = {number for number, block in blocks if block.missing(self.folder)}
        return sorted(numbers - self.attempted)

    def groups(self, numbers: list[int]) -> None:
        """Run these blocks, in as many groups as the cluster can use."""
        devices = self._devices()
        count = min(len(numbers), devices * GROUPS_PER_DEVICE)
        groups = [tuple(numbers[part::count]) for part in range(count)]
        print(f"{len(numbers)} blocks in {count} groups for {devices} devices of the cluster", flush=True)
        self._run(groups)

    def _run(self, groups: list[tuple[int, ...]]) -> None:
        """Send these groups, and write what they report until all end. A group without blocks reports its source."""
        running = {self._send(group, first=group == groups[0]): (group, 0) for group in groups}
        while running:
            ready, _ = self.ray.wait(list(running), num_returns=1, timeout=POLL_S)
            if not ready:
                self._devices()
            for stream in ready:
                group, losses = running.pop(stream)
                try:
                    self._adopt(self.ray.get(next(stream)))
                    running[stream] = (group, losses)
                except StopIteration:
                    self.attempted |= set(group)
                except self.ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, (ValueError, RuntimeError)) else error from None
                except self.ray.exceptions.RayError as error:
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    if losses + 1 == LOSSES:
                        raise RuntimeError(f"blocks {group} were lost {LOSSES} times: {reason}") from None
                    print(f"blocks {group} were lost with their machine and are sent again: {reason}", flush=True)
                    running[self._send(group, first=group == groups[0])] = (group, losses + 1)

    def _devices(self) -> int:
        """How many devices of the wanted type the cluster has.

        Raises:
            ValueError: there are none; Ray itself would wait without end.
        """
        wanted = self.device
        kinds = self.ray.cluster_resources()
        here = sorted(name.partition(":")[2] for name in kinds if name.startswith("accelerator_type:"))
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        count = sum(wanted.on(resources) for resources in machines)
        if count == 0:
            name = wanted.accelerator_type or "machine"
            needs = f"{wanted.gpus} GPUs and {wanted.cpus} CPUs" if wanted.gpus else f"{wanted.cpus} CPUs"
            raise ValueError(
                f"the cluster has no {name} with {needs}: it has {len(machines)} machines with "
                f"{', '.join(here) or 'no accelerator'}; add one, or choose other params"
            )
        return count

    def _send(self, group: tuple[int, ...], first: bool) -> Any:
        """Start a task with the blocks of a group that are missing; returns the stream of its reports."""
        if self.source is not None:
            blocks = plan(self.params, Source(**self.source))
            group = tuple(number for number in group if blocks[number].missing(self.folder))
        measures = first and bool(group)
        files = machine_files(self.folder) if measures else {}
        threads = os.environ.get("OMP_NUM_THREADS")
        task = GroupTask(self.params, group, measures, files, self.code, threads, self.command, self.limit_s)
        wanted = self.device
        options: dict[str, Any] = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "max_retries": 0}
        if wanted.accelerator_type:
            options["accelerator_type"] = wanted.accelerator_type
        remote = self.ray.remote(_run_on_node).options(**options, num_returns="streaming", scheduling_strategy="SPREAD")
        return remote.remote(task)

    def _adopt(self, report: Report) -> None:
        """Write what a task reports.

        Raises:
            ValueError: its machine computes with something else than the others, so that their numbers do not compare.
        """
        if report.environment:
            source = report.environment["source"]
            self.source = self.source or source
            if differing := [name for name in source if source[name] != self.source[name]]:
                name = differing[0]
                raise ValueError(
                    f"machines of the cluster differ in {name}: {self.source[name]} and {source[name]}; "
                    "give the study machines of one kind"
                )
            adopt_environment(self.folder, report.environment)
        for cell_id, rows in report.cells.items():
            write_cell(self.folder, cell_id, rows)
        for name, text in report.files.items():
            assert name in MACHINE_FILES
            write_atomically(self.folder / name, text)


def _run_on_node(task: GroupTask) -> Any:
    """The task itself, on its machine."""
    import ray

    context = ray.get_runtime_context()
    yield from run_group(task, {"node": context.get_node_id(), "worker": os.getpid()})


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError("a cluster needs Ray, which is not installed: run make cluster") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"no Ray cluster at {address} ({reason}): start one with ray start --head") from None
