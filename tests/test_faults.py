"""Faults that really happen to a sweep of toys, and what is left of it: nothing finished is ever lost."""

import json
import sys
from pathlib import Path

import pytest

from specdec_lib.config import load_params
from specdec_lib.measure.sweep import run_sweep, run_sweep_here

FAULTY_WORKER = str(Path(__file__).parent / "faulty_worker.py")
DETERMINED = [  # the columns that the same study has the same, run where and when it may be
    *("cell_id", "repetition", "status", "error", "evidence", "gpu", "device_name", "host", "engine", "pair"),
    *("target_id", "draft_id", "method", "verification", "num_draft_tokens", "temperature", "top_k", "top_p"),
    *("dtype", "compiled", "batch_size", "prompt_tokens", "max_new_tokens", "mean_prompt_tokens", "prompt_set"),
    *("prompt_group", "prompt_ids", "category", "seed", "new_tokens", "steps", "drafted_tokens", "tested_tokens"),
    *("accepted_tokens", "accepted_by_position", "tested_by_position", "acceptance_rate", "draft_efficiency"),
    "mean_acceptance_length",
]


def determined(rows):
    """The determined columns, each cell and repetition once: a baseline runs again beside a cell that does."""
    lists = {name: rows[name].map(str) for name in ("accepted_by_position", "tested_by_position")}
    return rows[DETERMINED].assign(**lists).drop_duplicates().reset_index(drop=True)


@pytest.fixture(scope="module")
def params():
    small = {"num_draft_tokens": [4], "batch_sizes": [1], "repetitions": 2, "max_new_tokens": [8]}
    return load_params("smoke").model_copy(update=small)


@pytest.fixture(scope="module")
def undisturbed(params, tmp_path_factory):
    return determined(run_sweep_here(params, tmp_path_factory.mktemp("undisturbed")))


def cell(method, temperature, group):
    gamma = " gamma=4" * (method != "autoregressive")
    return f"specdec_lib {method}{gamma} T={temperature} batch=1 prompt=natural new=8 group={group}"


def faulty(faults):
    return (sys.executable, FAULTY_WORKER, json.dumps(faults))


REASONS = {
    cell("draft", 0, 0): ("killed", "killed by SIGKILL - perhaps for want of memory"),
    cell("ngram", 0, 1): ("segfault", "killed by SIGSEGV - a crash in native code"),
    cell("autoregressive", 1, 0): ("hang", "stopped: it passed its time limit of 3 s"),
    cell("draft", 1, 0): ("out_of_memory", "RuntimeError: [enforce fail at alloc_cpu.cpp"),
    cell("draft", 1, 1): ("leave", "ended with exit code 7: a native library gave up"),
}


@pytest.fixture(scope="module")
def disturbed(params, tmp_path_factory):
    """The folder and the table after one sweep in which a different fault befalls each of five cells."""
    folder = tmp_path_factory.mktemp("disturbed")
    faults = {name: fault for name, (fault, _) in REASONS.items()}
    return folder, run_sweep(params, folder, limit_s=3, command=faulty(faults))


def test_each_fault_costs_one_cell_which_says_why_and_the_sweep_goes_on(disturbed, undisturbed):
    _, rows = disturbed
    failed = rows[rows["status"] == "failed"]
    names = {(line.method, line.temperature, line.prompt_group): line.error for line in failed.itertuples()}
    assert len(failed) == len(names) == len(REASONS)
    for name, (_, reason) in REASONS.items():
        (found,) = [error for key, error in names.items() if cell(key[0], int(key[1]), key[2]) == name]
        assert found.startswith(reason)
    assert failed["tpot_ms"].isna().all()
    assert set(rows["cell_id"]) == set(undisturbed["cell_id"])


def test_after_faults_the_same_command_completes_the_undisturbed_table(disturbed, undisturbed, params, capsys):
    folder, before = disturbed
    rows = run_sweep(params, folder)
    assert determined(rows).equals(undisturbed)
    whole = before[before["status"] == "ok"]
    kept = set(whole["run_id"]) & set(rows["run_id"])
    assert kept, "what had finished was not run again"
