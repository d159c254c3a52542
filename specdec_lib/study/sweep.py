"""Run a study's sweep: its cells in a process of their own, then one table of all of them. Or read a finished one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import price
from specdec_lib.machine.files import locked, now, writing
from specdec_lib.params_files import params_of_run
from specdec_lib.study.cells import Source, first_blocks, plan
from specdec_lib.study.rows.table import FILE, price_of_run, read_results, write_results
from specdec_lib.study.run_folder import ENVIRONMENT, add_facts, read_environment

LOCK = "sweep"


def run_sweep(
    params: StudyParams, folder: Path, *, limit_s: float | None = None, command: Sequence[str] | None = None
) -> pd.DataFrame:
    """Run every cell of the study that `folder` does not hold yet, and return the table of all of them.

    A finished study is only read, without weights, device or compiler. Cells run in a worker process, which loads the
    weights once; what kills it costs one cell, which leaves a failed row. With `SPECDEC_CLUSTER` set to a Ray cluster's
    address, each of its devices of the wanted type has such a worker. Also writes `environment.json`,
    `step_costs.json`, `calibration.json` and `transcripts.json`.

    Args:
        limit_s: the longest that one repetition of a cell may take; by default ten minutes and two seconds per token.
        command: what starts a worker.

    Raises:
        ValueError: the study cannot run here at all: wrong device, unknown price, damaged weights, prompts that do not
            fit the models, or another run is at work in `folder`.
        RuntimeError: the folder cannot be written, or workers die before their first cell.
    """
    if is_finished(params, folder):
        print(f"{folder} holds this study whole: it is read, and nothing is measured", flush=True)
        return read_results(folder)
    from specdec_lib.study.workers import cluster, supervisor  # they load PyTorch

    start = command or supervisor.COMMAND
    with _exclusively(params, folder):
        if address := os.environ.get(cluster.ADDRESS):
            cluster.run_blocks_on_cluster(params, folder, address, limit_s=limit_s, command=start)
        else:
            supervisor.run_blocks(params, folder, limit_s=limit_s, command=start)
        return gather(params, folder)


def run_first_blocks(params: StudyParams, folder: Path) -> pd.DataFrame | None:
    """Measure what gives a first headline, and return the table so far; `run_sweep` measures the rest.

    None where there is nothing to gain: on a cluster, of a study that has begun, and where all prompts are needed.

    Raises:
        ValueError, RuntimeError: as `run_sweep` does.
    """
    if read_environment(folder) or not first_blocks(params):
        return None
    from specdec_lib.study.workers import cluster, supervisor  # they load PyTorch

    if os.environ.get(cluster.ADDRESS):
        return None

    with _exclusively(params, folder):
        supervisor.run_blocks(params, folder, blocks=first_blocks(params), machine=False)
        return gather(params, folder)


def run_sweep_here(params: StudyParams, folder: Path) -> pd.DataFrame:
    """Measure what is missing in this process, which dies of what kills a cell: for debuggers and tests of toys."""
    from specdec_lib.study.workers import heartbeat
    from specdec_lib.study.workers.worker import WorkerTask, work

    with _exclusively(params, folder):
        work(WorkerTask(params, folder))
        add_facts(folder, read_environment(folder)["run_id"], ended=now())
        heartbeat.remove_heartbeat(folder)
        return gather(params, folder)


def is_finished(params: StudyParams, folder: Path) -> bool:
    """Whether `folder` holds this very study, measured to its end.

    The params that the run kept decide, not today's code: a folder of an earlier version is finished too. Where cells
    failed or the machine was not measured, the study is finished only for a machine that cannot measure them again.
    """
    facts = read_environment(folder)
    if not facts.get("ended") or not (folder / FILE).exists():
        return False
    try:
        if params_of_run(facts, ENVIRONMENT).model_dump() != params.model_dump():  # wherever they came from
            return False
    except ValueError:
        return False
    if facts.get("complete", True):
        return True
    import torch

    from specdec_lib.machine.environment import device_name

    here = torch.cuda.is_available() if params.device == "cuda" else device_name("cpu") == facts["device_name"]
    return not here  # on a GPU the worker checks more


def gather(params: StudyParams, folder: Path) -> pd.DataFrame:
    """Write `results.parquet` from the finished and failed cells that `folder` holds of this study, and return it.

    Which cells are the study's depends on the machine that the latest run in `environment.json` found. Cells of other
    params, weights, versions or devices stay on disk for whoever goes back to these; they are counted and left out.
    """
    from specdec_lib.study.machine_measurement import KEY_FILE  # loads PyTorch

    facts = read_environment(folder)
    ids = [cell.id for block in plan(params, Source(**facts["source"])) for cell in block.cells]
    if others := len({path.stem for path in folder.glob("cells/*.json")} - set(ids)):
        print(f"{others} cells of other params, weights, versions or devices are kept, out of the table", flush=True)
    rows = write_results(folder, ids, price_of_run(params, facts["source"]["threads"]).usd_per_hour)
    all_ok = set(rows["cell_id"]) == set(ids) and bool((rows["status"] == "ok").all())
    complete = all_ok and (folder / KEY_FILE).exists()
    add_facts(folder, facts["run_id"], cells_of_other_studies=others, complete=complete)
    return rows


@contextlib.contextmanager
def _exclusively(params: StudyParams, folder: Path) -> Iterator[None]:
    """Refuse what is wrong for sure, then hold the folder's lock.

    This process must not start CUDA: the worker would see a foreign process on its device, and its rows would count as
    disturbed. So on such a machine the worker checks the device.
    """
    import torch

    from specdec_lib.machine.environment import check_device

    price(params.price)
    if params.device == "cpu" or not torch.cuda.is_available():
        check_device(params)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, LOCK):
            for path in (*folder.glob("*.tmp"), *folder.glob("cells/*.tmp")):  # of processes that were killed
                path.unlink(missing_ok=True)
            yield
