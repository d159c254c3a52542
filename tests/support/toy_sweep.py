"""A small study of toys to which faults happen, what of its table is determined, and workers that come to grief."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specdec_lib.params_files import load_params
from specdec_lib.study import runner

FAULTY_WORKER = str(Path(__file__).parent / "faulty_worker.py")
DETERMINED = [  # the columns that the same study has the same, run where and when it may be
    *("cell_id", "repetition", "status", "error", "evidence", "gpu", "device_name", "host", "engine", "pair"),
    *("target_id", "draft_id", "method", "verification", "num_draft_tokens", "temperature", "top_k", "top_p"),
    *("dtype", "compiled", "batch_size", "prompt_tokens", "max_new_tokens", "mean_prompt_tokens", "prompt_set"),
    *("prompt_group", "prompt_ids", "category", "seed", "new_tokens", "steps", "drafted_tokens", "tested_tokens"),
    *("accepted_tokens", "accepted_by_position", "tested_by_position", "acceptance_rate", "draft_efficiency"),
    *("mean_acceptance_length", "tokens_sha256"),
]


def toy_params():
    """Four blocks of three cells."""
    small = {"num_draft_tokens": [4], "batch_sizes": [1], "repetitions": 2, "max_new_tokens": [8]}
    return load_params("smoke").model_copy(update=small)


def determined(rows):
    """The determined columns, each cell and repetition once: a baseline runs again beside a cell that does."""
    lists = {name: rows[name].map(str) for name in ("accepted_by_position", "tested_by_position", "tokens_sha256")}
    return rows[DETERMINED].assign(**lists).drop_duplicates().reset_index(drop=True)


def cell(method, temperature, group):
    """The name of a cell of `toy_params`."""
    gamma = " gamma=4" * (method != "autoregressive")
    return f"specdec_lib {method}{gamma} T={temperature} batch=1 prompt=natural new=8 group={group}"


def faulty(faults):
    """What starts a worker to which these faults happen: by where, a function of `faulty_worker`."""
    return (sys.executable, FAULTY_WORKER, json.dumps(faults))


def cells_in(folder):
    """The finished and failed cells on disk, with their contents."""
    return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.json")}


def run_interrupted(run, cells):
    """Press Ctrl-C in `run` when so many cells are written."""
    written, write = iter(range(10**6)), runner.write_cell

    def stop_at_last(*arguments):
        if next(written) == cells:
            raise KeyboardInterrupt
        write(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "write_cell", stop_at_last)
        with pytest.raises(KeyboardInterrupt):
            run()


def alive(pid):
    """Whether a process runs; one that is dead and not yet collected does not."""
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid, seconds):
    """Whether a process has ended, at the latest after so many seconds."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def python(*arguments, **options):
    """Start this interpreter, its output to be read as text."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
