"""A sweep whose target is spread over two processes: the tokens of one process, and faults that befall one of the two.

With gloo on a CPU, as NCCL does it on GPUs.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from test_faults_of_runs import gone
from test_pair import write_checkpoint
from torch.distributed import HashStore
from toy_sweep import alive, cell, faulty, toy_params

from specdec_lib.__main__ import main
from specdec_lib.cli import commands
from specdec_lib.config import load_params
from specdec_lib.hardware.catalog import price
from specdec_lib.machine.engine_facts import compiler_of
from specdec_lib.models.pair import load_study_pair
from specdec_lib.report.captions.cost import price_note
from specdec_lib.report.index import why_no_certificate
from specdec_lib.study.blocks import plan
from specdec_lib.study.cells import Source
from specdec_lib.study.rerun import rerun
from specdec_lib.study.sweep import gather
from specdec_lib.study.workers import launch, team
from specdec_lib.study.workers.cluster import Device
from specdec_lib.study.workers.supervisor import run_blocks
from specdec_lib.study.workers.team import LostError, Team, first_failure, together

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
    assert said == {KILLED: "process 1 of 2 was killed by SIGKILL - perhaps for want of memory"}
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensor_parallel": 4}, "has 2 heads and 2 key/value heads: choose a number that divides both"),
        ({"pair": "toy", "target": None, "draft": None}, "tensor_parallel is 2: toy is made for one device, give 1"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_one_line_before_anything_starts(
    params, change, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "load_params", lambda *_: params.model_copy(update=change))
    assert main(["run", "--gpu", "smoke", "--outputs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["certify", "bench-peers"])
def test_commands_of_one_process_refuse_a_spread_target(params, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "load_params", lambda *_: params)
    assert main([command, "--gpu", "smoke", "--outputs", str(tmp_path)]) == 2
    assert "loads the whole target in one process" in capsys.readouterr().err


def in_step(work):
    """What each of two processes - here two threads - makes of `work(team)`."""
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: work(Team(rank, 2, store)), (0, 1)))


def test_the_first_decides_for_all():
    assert in_step(lambda one: [one.decide(lambda: one.rank), one.decide(lambda: one.rank + 5)]) == [[0, 5]] * 2
    assert in_step(lambda one: one.share(one.rank)) == [[0, 1]] * 2
    assert Team().decide(lambda: "alone") == "alone"


def test_who_fails_alone_waits_no_longer_than_it_must_and_takes_the_others_with_it(monkeypatch):
    """The other hangs in the middle of an exchange with it, or comes when it has given up: nothing is decided then."""
    monkeypatch.setattr(team, "ALONE_S", 0.1)
    store = HashStore()
    with pytest.raises(LostError, match="process 1 of 2 failed alone: OutOfMemoryError: of 80 GB"):
        Team(1, 2, store).share(None, failure="OutOfMemoryError: of 80 GB")
    with pytest.raises(LostError, match="process 0 of 2 came too late"):
        Team(0, 2, store).share(None)


def test_who_fails_with_the_others_goes_on():
    failures = ("out of memory", "out of memory here too")
    assert in_step(lambda one: [one.share(one.rank, failures[one.rank]), one.share(5)]) == [[[0, 1], [5, 5]]] * 2
    assert in_step(lambda one: one.share(one.rank, failures[0] if one.rank else None)) == [[0, 1]] * 2


def test_a_repetition_counts_if_all_made_it_and_say_the_same():
    ok = {"tokens_sha256": "ab", "tpot_ms": 1.0, "telemetry_note": None, "throttle_reasons": None, "throttled": False}
    first, second = (ok | {"energy_joules_per_token": joules, "tpot_ms": joules} for joules in (2.0, 3.0))
    assert together([first]) is first
    both = together([first, second])
    assert (both["energy_joules_per_token"], both["tpot_ms"], both["throttled"]) == (5.0, 2.0, False)
    assert "different tokens" in str(together([first, second | {"tokens_sha256": "cd"}])["error"])
    failed = {"status": "failed", "error": "OutOfMemoryError: no"}
    assert together([failed, failed]) == failed
    assert together([first, failed])["error"] == "OutOfMemoryError: no (process 1 of 2)"
    assert first_failure([None, None]) is None


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
    assert launch._say_why({0: 1, 1: -11}, 2) == launch.LOST
    assert capsys.readouterr().err == "error: process 1 of 2 was killed by SIGSEGV - a crash in native code\n"
    assert launch._say_why({0: -15, 1: launch.REFUSED}, 2) == launch.REFUSED, "the agent ended the other"


def test_a_group_of_blocks_asks_a_cluster_for_all_devices_of_a_target():
    four = load_params("h100").model_copy(update={"tensor_parallel": 4})
    assert Device.of(four) == Device("H100", gpus=4, cpus=4)
    machines = ({"CPU": 64.0, "GPU": gpus, "accelerator_type:H100": 1.0} for gpus in (2.0, 8.0))
    assert [Device.of(four).on(machine) for machine in machines] == [0, 2]


def test_an_hour_of_a_spread_target_costs_what_all_its_gpus_cost():
    one, study = price("aws-us-east-1-h100"), load_params("h100")
    four = one.times(study.model_copy(update={"tensor_parallel": 4}).num_devices)
    assert four.usd_per_hour == 4 * one.usd_per_hour
    assert price_note(four).startswith(f"at ${four.usd_per_hour:g} an hour: 4 GPUs of {one.vendor}, ")
    assert one.times(study.num_devices) == one
    assert load_params("cpu").model_copy(update={"tensor_parallel": 4}).num_devices == 1, "processes share a CPU"


def test_a_run_says_why_it_has_no_certificate(params):
    assert "needs the whole target in one process" in str(why_no_certificate(params))
    assert why_no_certificate(toy_params()) is None


def test_cells_of_one_process_are_the_cells_they_were(params):
    """A target that is not spread leaves no word in what a cell's id is a hash of, so that earlier results stand."""
    pair = load_study_pair(params.model_copy(update={"tensor_parallel": 1}))
    assert compiler_of(pair.target) == "kernels none"
    names = [field.name for field in dataclasses.fields(Source)]
    source = Source(**dict.fromkeys(names, "x") | {"threads": 1})
    assert plan(toy_params(), source)[0].cells[1].id == "c1599383f4eba866", "as before there was such a key"
