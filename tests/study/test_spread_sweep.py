"""A sweep whose target is spread over two processes: the tokens of one process, and faults that befall one of the two.

With gloo on a CPU, as NCCL does it on GPUs.
"""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from checkpoints import write_checkpoint
from torch.distributed import HashStore
from toy_sweep import alive, cell, faulty, gone, toy_params

from specdec_lib.study.rerun import rerun
from specdec_lib.study.sweep import gather
from specdec_lib.study.workers import launch
from specdec_lib.study.workers.supervisor import run_blocks
from specdec_lib.study.workers.team import LostError, Team, merge_ranks

KILLED = cell("draft", 0, 0)


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """The study of toys with a tiny Llama that two processes can share, and a draft of its own."""
    root = tmp_path_factory.mktemp("pair")
    for name, layers in (("target", 2), ("draft", 1)):
        write_checkpoint(root / name, layers=layers, num_key_value_heads=2)
    pair = {"pair": "custom", "target": str(root / "target"), "draft": str(root / "draft")}
    return toy_params().model_copy(update=pair | {"tensor_parallel": 2})


@pytest.fixture(scope="module")
def disturbed(params, tmp_path_factory):
    """The folder and the table of a sweep in which the second process is killed."""
    folder = tmp_path_factory.mktemp("spread")
    run_blocks(params, folder, machine=False, command=faulty({KILLED: "second_killed"}))
    return folder, gather(params, folder)


@pytest.mark.slow
def test_a_process_that_dies_costs_one_cell_and_none_is_left_behind(disturbed):
    folder, rows = disturbed
    failed = rows[rows["status"] == "failed"]
    said = {cell(line.method, int(line.temperature), line.prompt_group): line.error for line in failed.itertuples()}
    assert said == {KILLED: "process 1 of 2 was killed by SIGKILL - perhaps because memory ran out"}
    assert rows["cell_id"].nunique() == 12
    assert (rows["status"] == "ok").sum() == 2 * (12 - 1)
    left = [each.pid for each in psutil.process_iter(["cmdline"]) if str(folder) in str(each.info["cmdline"])]
    assert not left


@pytest.mark.slow
def test_two_processes_decode_what_one_does_in_float32(disturbed):
    """Every cell is decoded again in this process from the seeds of its rows.

    Sums in another order differ in the last bits, about 1e-7 of a logit; that one of 300 draws falls into such a gap
    has a chance below 1e-4, and it would be the same draws at every run.
    """
    folder, rows = disturbed
    path = folder / "environment.json"
    facts = json.loads(path.read_text())
    assert facts["engine"]["tensor_parallel"] == 2
    for run in facts["runs"].values():
        run["params"]["tensor_parallel"] = 1
    path.write_text(json.dumps(facts))
    found = [rerun(folder, cell_id) for cell_id in rows.loc[rows["status"] == "ok", "cell_id"].unique()]
    assert [one.different for one in found] == [[]] * (12 - 1)
    assert all("tensor parallel over 2" in one.changed[0] for one in found), "and these are cells of their own"


@pytest.mark.slow
def test_rows_hold_the_memory_of_both_processes(disturbed):
    _, rows = disturbed
    measured = rows[rows["status"] == "ok"]
    assert (measured["process_peak_rss_bytes"] > 2 * 150e6).all(), "PyTorch alone takes more than that in each"
    assert measured["telemetry_note"].str.endswith("bytes and joules are sums over 2 processes").all()


def in_step(work):
    """What each of two processes - here two threads - makes of `work(team)`."""
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: work(Team(rank, 2, store)), (0, 1)))


def test_the_first_decides_for_all():
    assert in_step(lambda one: [one.decide(lambda: one.rank), one.decide(lambda: one.rank + 5)]) == [[0, 5]] * 2
    assert in_step(lambda one: one.share(one.rank)) == [[0, 1]] * 2
    assert Team().decide(lambda: "alone") == "alone"


def test_a_process_that_fails_ends_unless_it_is_alone():
    """The others may hang in an exchange with it, so that the supervisor must end them."""
    with pytest.raises(LostError, match="process 1 of 2 failed: OutOfMemoryError: of 80 GB"):
        Team(1, 2).check("OutOfMemoryError: of 80 GB")
    Team().check("OutOfMemoryError: of 80 GB")
    Team(1, 2).check(None)


def test_a_repetition_counts_if_all_decoded_the_same():
    ok = {"tokens_sha256": "ab", "tpot_ms": 1.0, "telemetry_note": None, "throttle_reasons": None, "throttled": False}
    first, second = (ok | {"energy_joules_per_token": joules, "tpot_ms": joules} for joules in (2.0, 3.0))
    assert merge_ranks([first]) is first
    both = merge_ranks([first, second])
    assert (both["energy_joules_per_token"], both["tpot_ms"], both["throttled"]) == (5.0, 2.0, False)
    assert "different tokens" in str(merge_ranks([first, second | {"tokens_sha256": "cd"}])["error"])


HANGS = """
import faulthandler, os, pathlib, signal, sys, time
faulthandler.enable()
pathlib.Path(sys.argv[1], os.environ["RANK"]).touch()
signal.pause()
"""


@pytest.fixture
def hanging(tmp_path):
    """Two processes that never end, and the one that watches over them."""
    command = launch.in_processes((sys.executable, "-c", HANGS, str(tmp_path)), 2)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
        while len(list(tmp_path.iterdir())) < 2:
            assert watcher.poll() is None
            time.sleep(0.05)
        yield watcher, [each.pid for each in psutil.Process(watcher.pid).children()]
        watcher.kill()


def test_processes_that_hang_say_where_and_end_together(hanging):
    """What a sweep asks of a worker that has passed its time limit."""
    watcher, processes = hanging
    watcher.send_signal(signal.SIGABRT)
    assert watcher.wait(timeout=60) == launch.LOST
    assert watcher.stderr.read().count("Fatal Python error: Aborted") == len(processes) == 2
    assert not any(map(alive, processes))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends them; elsewhere they do, when they can")
def test_processes_end_with_who_watches_over_them(hanging):
    watcher, processes = hanging
    watcher.kill()
    watcher.wait()
    assert all(gone(each, seconds=10) for each in processes)


def test_a_death_from_outside_comes_before_what_it_led_to(capsys):
    assert launch._exit_code({0: 1, 1: -11}, 2) == launch.LOST
    assert capsys.readouterr().err == "error: process 1 of 2 was killed by SIGSEGV - a crash in native code\n"
    assert launch._exit_code({0: -15, 1: launch.REFUSED}, 2) == launch.REFUSED, "the agent ended the other"
