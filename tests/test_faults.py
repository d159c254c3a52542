"""Faults that really happen to the worker of a sweep of toys: each costs one cell, and nothing finished is lost."""

import pytest
from toy_sweep import cell, cells_in, determined, faulty, toy_params

from specdec_lib.measure.sweep import run_sweep, run_sweep_here

REASONS = {  # by the cell it happens to: the fault, and what the cell's row says of it
    cell("draft", 0, 0): ("killed", "killed by SIGKILL - perhaps for want of memory"),
    cell("ngram", 0, 1): ("segfault", "killed by SIGSEGV - a crash in native code"),
    cell("autoregressive", 1, 0): ("hang", "stopped: it passed its time limit of 3 s"),
    cell("draft", 1, 0): ("out_of_memory", "RuntimeError: [enforce fail at alloc_cpu.cpp"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return determined(run_sweep_here(toy_params(), tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """The folder and the table after one sweep in which a different fault happens to each of four cells."""
    folder = tmp_path_factory.mktemp("disturbed")
    faults = {name: fault for name, (fault, _) in REASONS.items()}
    return folder, run_sweep(toy_params(), folder, limit_s=3, command=faulty(faults))


@pytest.mark.slow
def test_each_fault_costs_one_cell_which_says_why_and_the_sweep_goes_on(disturbed, undisturbed):
    """Killed, crashed in native code, hanging with Python's lock held, and out of memory under a real limit."""
    _, rows = disturbed
    failed = rows[rows["status"] == "failed"]
    said = {cell(line.method, int(line.temperature), line.prompt_group): line.error for line in failed.itertuples()}
    assert len(failed) == len(REASONS)
    assert {name: error.startswith(REASONS[name][1]) for name, error in said.items()} == dict.fromkeys(REASONS, True)
    assert failed["tpot_ms"].isna().all()
    assert set(rows["cell_id"]) == set(undisturbed["cell_id"])


@pytest.mark.slow
def test_after_faults_the_same_command_completes_the_undisturbed_table(disturbed, undisturbed):
    """Only the cells of disturbed blocks run again; rows of one process have one run id and are paired by it."""
    folder, before = disturbed
    whole = before[(before["status"] == "ok") & (before["temperature"] == 1) & (before["prompt_group"] == 1)]
    files = cells_in(folder)
    rows = run_sweep_here(toy_params(), folder)
    assert determined(rows).equals(undisturbed)
    assert whole["cell_id"].nunique() == 3
    assert all(cells_in(folder)[f"{name}.json"] == files[f"{name}.json"] for name in whole["cell_id"])
    paired = rows.groupby(["temperature", "prompt_group", "run_id", "repetition"])["method"].agg(set)
    assert all("autoregressive" in methods for methods in paired)
