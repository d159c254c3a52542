"""Spread a study's blocks over the machines of a Ray cluster: `make run GPU=<name> CLUSTER=<address>`.

Groups of blocks are tasks, each on one device of the type that the params ask for, or on as many of one machine as the
target is spread over. A task does what a run at home does, in a temporary copy of the run folder, and sends back every
file that changes. So a group may be sent again: what its lost machine had finished is in the next copy. The first group
measures its machine as well. Ray's ports ask for no password: use it on private networks only. Start its nodes with
RAY_worker_niceness=0: by default Ray gives its workers a low priority.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specdec_lib.config import StudyParams
from specdec_lib.machine import calibration_file, step_costs
from specdec_lib.machine.files import write_atomically
from specdec_lib.study import machine_measurement, run_folder, transcripts
from specdec_lib.study.cells import num_blocks
from specdec_lib.study.workers.supervisor import COMMAND, PACKAGES, run_blocks

ADDRESS = "SPECDEC_CLUSTER"  # environment variable with the cluster's address
GROUPS_PER_DEVICE = 2  # each loads the weights once; more of them balance better
LOSSES = 3  # of one group before the run gives up
POLL_S = 2.0  # between checks whether the cluster still has the devices
REPORT_S = 0.5  # between checks whether a task's folder has changed
MACHINE_FILES = (calibration_file.FILE, step_costs.FILE, machine_measurement.KEY_FILE, transcripts.FILE)
CODE = (".py", ".cpp", ".yaml", ".jsonl")

Files = dict[str, str]  # names below the run folder, with their texts
Changes = dict[str, str | None]  # the same of files that are new; None for one that is gone


@dataclass(frozen=True)
class Device:
    """What a task asks Ray for: the devices of one machine that the target is on."""

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


@dataclass(frozen=True)
class GroupTask:
    """A group of blocks, with all that decides how they run."""

    params: StudyParams
    blocks: tuple[int, ...]
    machine: bool  # also measure calibration, costs of a step and transcripts
    files: Files  # what is finished, and known of the machine
    code: str  # `code_hash` of the sender
    threads: str | None  # its OMP_NUM_THREADS
    command: tuple[str, ...]  # what starts a worker
    limit_s: float | None


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

    Each task asks for `device`, by default what the params say. `address`, `limit_s` and `command` are as Ray and
    `supervisor.run_blocks` take them.

    Raises:
        ValueError: Ray is not installed, there is no cluster, it has no such device, or the study cannot run there.
        RuntimeError: a group of blocks was lost three times, or workers die before their first cell.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("a cluster needs Ray, which is not installed: run make cluster") from None
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(address=address, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster at {address} ({_one_line(error)}): start one with ray start --head") from None
    try:
        _run_groups(ray, params, folder, device or Device.of(params), limit_s, tuple(command))
    finally:
        if ours:
            ray.shutdown()


def _run_groups(
    ray: Any, params: StudyParams, folder: Path, device: Device, limit_s: float | None, command: tuple[str, ...]
) -> None:
    """Send all blocks in as many groups as the cluster can use, and write what their tasks report until all end."""
    devices, total = count_devices(ray, device), num_blocks(params)
    count = min(total, devices * GROUPS_PER_DEVICE)
    print(f"{total} blocks in {count} groups for {devices} devices of the cluster", flush=True)
    code, threads = code_hash(), os.environ.get("OMP_NUM_THREADS")
    options: dict[str, Any] = {"num_cpus": device.cpus, "num_gpus": device.gpus, "max_retries": 0}
    if device.accelerator_type:
        options["accelerator_type"] = device.accelerator_type
    remote = ray.remote(_run_on_node).options(**options, num_returns="streaming", scheduling_strategy="SPREAD")

    def send(part: int) -> Any:
        blocks, files = tuple(range(part, total, count)), read_files(folder)
        files.pop(run_folder.ENVIRONMENT, None)  # each task writes that of its own runs
        return remote.remote(GroupTask(params, blocks, part == 0, files, code, threads, command, limit_s))

    running = {send(part): part for part in range(count)}
    losses = [0] * count
    sources: list[dict[str, Any]] = []
    while running:
        ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
        if not ready:
            count_devices(ray, device)
        for stream in ready:
            part = running.pop(stream)
            try:
                place, changes = ray.get(next(stream))
                adopt(folder, place, changes, sources)
                running[stream] = part
            except StopIteration:
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, (ValueError, RuntimeError)) else error from None
            except ray.exceptions.RayError as error:
                losses[part] += 1
                reason = f"group {part} of blocks was lost with its machine: {_one_line(error)}"
                if losses[part] == LOSSES:
                    raise RuntimeError(f"{LOSSES} times {reason}") from None
                print(f"{reason}; its blocks are sent again", flush=True)
                running[send(part)] = part


def count_devices(ray: Any, wanted: Device) -> int:
    """How many devices of the wanted type the cluster has; ValueError for none, as Ray would wait without end."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if count := sum(wanted.on(resources) for resources in machines):
        return count
    kinds = {name.partition(":")[2] for each in machines for name in each if name.startswith("accelerator_type:")}
    raise ValueError(
        f"the cluster has no {wanted.accelerator_type or 'machine'} with {wanted.gpus} GPUs and {wanted.cpus} CPUs: it "
        f"has {len(machines)} machines with {', '.join(sorted(kinds)) or 'no accelerator'}; add one, or choose other "
        "params"
    )


def adopt(folder: Path, place: dict[str, object], changes: Changes, sources: list[dict[str, Any]]) -> None:
    """Write what a task reports from `place`, whose source is added to those of the run's other machines.

    ValueError if its machine computes with something else than the others, so that their numbers do not compare.
    """
    if environment := changes.pop(run_folder.ENVIRONMENT, None):
        facts = json.loads(environment)
        sources.append(facts["source"])
        for name, first in sources[0].items():
            if first != (other := sources[-1][name]):
                reason = f"machines of the cluster differ in {name}: {first} and {other}"
                raise ValueError(f"{reason}; give the study machines of one kind")
        for run in facts["runs"].values():
            run["place"] = place
        run_folder.adopt_environment(folder, facts)
    (folder / "cells").mkdir(exist_ok=True)
    for name, text in changes.items():
        if text is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_atomically(folder / name, text)


def _run_on_node(task: GroupTask) -> Iterator[tuple[dict[str, object], Changes]]:
    """The task itself, on its machine."""
    import ray

    place: dict[str, object] = {"node": ray.get_runtime_context().get_node_id(), "worker": os.getpid()}
    for changes in run_group(task):
        yield place | {"niceness": os.getpriority(os.PRIO_PROCESS, 0)}, changes


def run_group(task: GroupTask) -> Iterator[Changes]:
    """Run a task's blocks on this machine, and report each file of its folder that changes.

    ValueError if the library here is another one; else the errors of `run_blocks`.
    """
    if code_hash() != task.code:
        raise ValueError(f"{socket.gethostname()} has another specdec_lib: check out the same commit on every machine")
    _undo_ray_defaults(task.threads)
    with tempfile.TemporaryDirectory(prefix="specdec-") as work, ThreadPoolExecutor(1) as pool:
        folder, sent = Path(work), dict(task.files)
        (folder / "cells").mkdir()
        for name, text in sent.items():
            (folder / name).write_text(text, encoding="utf-8")
        options: dict[str, Any] = {"blocks": task.blocks, "machine": task.machine}
        run = pool.submit(run_blocks, task.params, folder, **options, limit_s=task.limit_s, command=task.command)
        ended = False
        while not ended:
            ended = bool(wait([run], REPORT_S).done)
            found = read_files(folder)
            if changed := [name for name in {**sent, **found} if found.get(name) != sent.get(name)]:
                yield {name: found.get(name) for name in changed}
            sent = found
        run.result()  # raises its error


def read_files(folder: Path) -> Files:
    """Cells, what is known of the machine, and last the environment, which so names the runs of all these cells."""
    texts = {}
    for path in (*folder.glob("cells/*.json"), *(folder / name for name in (*MACHINE_FILES, run_folder.ENVIRONMENT))):
        with contextlib.suppress(FileNotFoundError):
            texts[str(path.relative_to(folder))] = path.read_text(encoding="utf-8")
    return texts


def code_hash() -> str:
    """A hash of this library's files: all machines of a run must have the same."""
    package = PACKAGES / "specdec_lib"
    files = sorted(path for path in package.rglob("*") if path.suffix in CODE)
    parts = (f"{path.relative_to(package)}".encode() + path.read_bytes() for path in files)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _undo_ray_defaults(threads: str | None) -> None:
    """Undo Ray's number of threads and (where permitted) its low priority."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(0, os.getpriority(os.PRIO_PROCESS, 0)))
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
