"""Run a study's sweep: its cells in a process of their own, then one table of all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch

from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import price
from specdec_lib.machine.environment import add_facts, check_device, read_environment, stamp_end
from specdec_lib.study.blocks import plan
from specdec_lib.study.cell_files import cells_on_disk, remove_temporary_files, writing
from specdec_lib.study.cells import Source
from specdec_lib.study.lock import locked
from specdec_lib.study.table import write_results
from specdec_lib.study.workers.cluster import ADDRESS, run_blocks_on_cluster
from specdec_lib.study.workers.heartbeat import forget
from specdec_lib.study.workers.supervisor import COMMAND, run_blocks
from specdec_lib.study.workers.worker import Order, work

LOCK = "sweep"


def run_sweep(
    params: StudyParams, folder: Path, *, limit_s: float | None = None, command: Sequence[str] = COMMAND
) -> pd.DataFrame:
    """Run every cell of the study that `folder` does not hold yet, and return the table of all of them.

    Cells run in a worker process, which loads the weights once; what kills it costs the cell it was in, which leaves a
    failed row, and the sweep goes on. With `SPECDEC_CLUSTER` set to a Ray cluster's address, each of its devices of the
    wanted type has such a worker. Also writes `results.parquet`, `environment.json`, `step_costs.json` and
    `calibration.json`.

    Args:
        limit_s: the longest that one repetition of a cell may take; by default ten minutes and two seconds per token.
        command: what starts a worker.

    Raises:
        ValueError: the study cannot run here at all: wrong device, unknown price, damaged weights, prompts that do not
            fit the models, or another run is at work in `folder`.
        RuntimeError: the folder cannot be written, or workers die before their first cell.
    """
    with _alone(params, folder):
        if address := os.environ.get(ADDRESS):
            run_blocks_on_cluster(params, folder, address, limit_s=limit_s, command=command)
        else:
            run_blocks(params, folder, limit_s=limit_s, command=command)
        return gather(params, folder)


def run_sweep_here(params: StudyParams, folder: Path) -> pd.DataFrame:
    """As `run_sweep`, but in this process, which dies of what kills a cell: for debuggers and tests of toys."""
    with _alone(params, folder):
        work(Order(params, folder))
        stamp_end(folder, read_environment(folder)["run_id"])
        forget(folder)
        return gather(params, folder)


def gather(params: StudyParams, folder: Path) -> pd.DataFrame:
    """Write `results.parquet` from the finished and failed cells that `folder` holds of this study, and return it.

    Which cells are the study's depends on the machine that the latest run in `environment.json` found. Cells of other
    params, weights, versions or devices stay on disk for whoever goes back to these; they are counted and left out.
    """
    facts = read_environment(folder)
    ids = [cell.id for block in plan(params, Source(**facts["source"])) for cell in block.cells]
    if others := len(cells_on_disk(folder) - set(ids)):
        print(f"{others} cells of other params, weights, versions or devices are kept, out of the table", flush=True)
    add_facts(folder, facts["run_id"], cells_of_other_studies=others)
    return write_results(folder, ids, price(params.price).times(params.num_devices).usd_per_hour)


@contextlib.contextmanager
def _alone(params: StudyParams, folder: Path) -> Iterator[None]:
    """Refuse what is wrong for sure, then hold the folder's lock.

    This process must not start CUDA: the worker would see a stranger on its device, and its rows would count as
    disturbed. So on such a machine the worker checks the device.
    """
    price(params.price)
    if params.device == "cpu" or not torch.cuda.is_available():
        check_device(params)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, LOCK):
            remove_temporary_files(folder)
            yield
