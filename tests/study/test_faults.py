"""Faults that really happen to the worker of a sweep of toys: each costs one cell, and nothing finished is lost."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_sweep import cell, cells_in, determined, faulty, toy_params

from specdec_lib.analysis.step_table import read_step_costs
from specdec_lib.study.sweep import run_sweep, run_sweep_here
from specdec_lib.study.workers import worker
from specdec_lib.study.workers.supervisor import run_blocks

COMPILER = shutil.which("cc") or shutil.which("gcc")
REASONS = {  # by the cell it happens to: the fault, and what the cell's row says of it
    cell("draft", 0, 0): ("killed", "killed by SIGKILL - perhaps because memory ran out"),
    cell("ngram", 0, 1): ("segfault", "killed by SIGSEGV - a crash in native code"),
    cell("autoregressive", 1, 0): ("hang", "passed its time limit of 12 s and was stopped"),
    cell("draft", 1, 0): ("out_of_memory", "RuntimeError: [enforce fail at alloc_cpu.cpp"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return determined(run_sweep_here(toy_params(), tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """The folder and the table after a sweep in which a fault happens to each of four cells, and one after them."""
    folder = tmp_path_factory.mktemp("disturbed")
    faults = {name: fault for name, (fault, _) in REASONS.items()} | {"machine": "killed"}
    return folder, run_sweep(toy_params(), folder, limit_s=12, command=faulty(faults))


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
def test_a_worker_that_dies_while_it_measures_the_machine_costs_those_measurements_only(disturbed):
    folder, rows = disturbed
    assert read_step_costs(folder).empty
    assert rows["run_id"].nunique() == 4, "three died in a cell, one went on"
    assert (rows["status"] == "ok").sum() == 2 * (12 - len(REASONS))


@pytest.mark.slow
def test_after_faults_the_same_command_completes_the_undisturbed_table(disturbed, undisturbed):
    """Only the cells of disturbed blocks run again; rows of one process have one run id and are paired by it."""
    folder, before = disturbed
    whole = before[(before["status"] == "ok") & (before["temperature"] == 1) & (before["prompt_group"] == 1)]
    files = cells_in(folder)
    rows = run_sweep_here(toy_params(), folder)
    assert determined(rows).equals(undisturbed)
    assert not read_step_costs(folder).empty
    assert whole["cell_id"].nunique() == 3
    assert all(cells_in(folder)[f"{name}.json"] == files[f"{name}.json"] for name in whole["cell_id"])
    paired = rows.groupby(["temperature", "prompt_group", "run_id", "repetition"])["method"].agg(set)
    assert all("autoregressive" in methods for methods in paired)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="the clock is replaced by a library of its own")
def test_a_clock_that_jumps_backwards_changes_no_duration(undisturbed, tmp_path, monkeypatch):
    """In the worker every look at the time of day shows an hour less than the one before."""
    library = tmp_path / "clock.so"
    source = Path(__file__).parents[1] / "support" / "stub_clock" / "backwards.c"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    backwards = "import time; print(time.time() > time.time() + 3000)"
    assert subprocess.run([sys.executable, "-c", backwards], capture_output=True, check=True).stdout == b"True\n"
    rows = run_sweep(toy_params(), tmp_path / "out")
    assert determined(rows).equals(undisturbed)
    assert (rows[["ttft_ms", "tpot_ms", "tokens_per_second"]] > 0).all().all()
    assert all(0 <= ms < 60e3 for steps in rows["step_ms"] for ms in steps)


def ends(code):
    """What starts a "worker" that ends before its first cell."""
    return (sys.executable, "-c", code)


def test_workers_that_cannot_even_load_end_the_sweep_with_one_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"^two workers .* before their first cell: killed by SIGKILL"):
        run_blocks(toy_params(), tmp_path, command=ends("import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(RuntimeError, match=r"first cell: ended with exit code 7: no such library$"):
        run_blocks(
            toy_params(), tmp_path, command=ends("import sys; print('no such library', file=sys.stderr); sys.exit(7)")
        )


def test_a_study_that_cannot_run_is_refused_in_the_words_of_the_worker(tmp_path, capsys):
    """The worker says why in one line and ends with a code of its own, which is not tried a second time."""
    task = worker.WorkerTask(toy_params().model_copy(update={"device_name": "H100"}), tmp_path)
    assert worker.main([task.to_json()]) == worker.REFUSED
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(ValueError, match="needs a device whose name contains 'H100', but this machine has") as refusal:
        run_blocks(toy_params(), tmp_path, command=ends(f"import os; os.write(2, {said.encode()!r}); os._exit(2)"))
    assert said == f"error: {refusal.value}\n"


def test_what_libraries_say_at_the_end_is_not_taken_for_the_reason(tmp_path):
    said = b"error: no such weights: fetch them\nresource_tracker: 1 leaked semaphore\n"
    with pytest.raises(ValueError, match=r"^no such weights: fetch them$"):
        run_blocks(toy_params(), tmp_path, command=ends(f"import os; os.write(2, {said!r}); os._exit(2)"))


def test_every_line_of_the_fault_table_names_a_test_that_exists():
    root = Path(__file__).parents[2]
    table = (root / "docs" / "faults.md").read_text(encoding="utf-8")
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    links = [re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/\w+/test_\w+\.py)\)", line) for line in lines]
    assert all(found or "the same test" in line for line, found in zip(lines, links, strict=True))
    for name, file in {link for found in links for link in found}:
        assert f"def {name}(" in (root / file).read_text(encoding="utf-8")
