"""What happens to a whole run - killed, interrupted, started twice - and what the next one makes of it."""

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from toy_sweep import alive, cell, cells_in, determined, faulty, gone, python, toy_params

from specdec_lib.report.pages import make_reports
from specdec_lib.study.sweep import run_sweep_here
from specdec_lib.study.workers.heartbeat import read_heartbeat

STUCK = faulty({cell("draft", 0, 1): "hang"})  # in the third of four blocks


@pytest.fixture
def start(tmp_path):
    """Starts the toy study in `tmp_path`; what still runs when the test has ended is killed."""
    with ExitStack() as stack:

        def start(**environment):
            study = Path(__file__).parents[1] / "support" / "toy_study.py"
            arguments = (study, tmp_path, "run", "--gpu", "smoke", "--outputs", tmp_path)
            run = stack.enter_context(python(*arguments, env=os.environ | environment, cwd=study.parents[1]))
            stack.callback(run.kill)
            return run

        yield start


def start_and_wait_until_stuck(start, folder):
    """A run whose worker hangs in mid-sweep; returns it and the process number of the worker."""
    run = start(TOY_WORKER=json.dumps(STUCK))
    while not is_stuck(seen := read_heartbeat(folder)):
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.05)
    return run, seen.pid


def is_stuck(seen):
    row = (seen and seen.row) or {}
    return (row.get("method"), row.get("temperature"), row.get("prompt_group")) == ("draft", 0, 1) and alive(seen.pid)


@pytest.mark.slow
def test_killed_interrupted_and_started_twice_a_run_loses_nothing(start, tmp_path):
    """One study's life: killed outright, started again, a second run refused, Ctrl-C, and completed.

    Ctrl-C ends it within two seconds, worker included, without a traceback. At the end the table is the undisturbed
    one, no cell that had finished was run again, and the run's page never showed a report that was not there.
    """
    folder = tmp_path / "smoke"
    run, worker = start_and_wait_until_stuck(start, folder)
    run.kill()
    assert gone(worker, seconds=10), "the kernel looks for its parent once a second, the worker dies with the kernel"
    run.communicate()
    finished = cells_in(folder)
    assert len(finished) >= 6
    assert "missing: this part did not run to its end" in (folder / "index.html").read_text()

    run, worker = start_and_wait_until_stuck(start, folder)
    refusal = f"{folder} is in use by another run: wait until it ends"
    with pytest.raises(ValueError, match=refusal):
        make_reports(toy_params(), tmp_path)
    with pytest.raises(ValueError, match=refusal):
        run_sweep_here(toy_params(), folder)
    run.send_signal(signal.SIGINT)
    started = time.monotonic()
    said, _ = run.communicate()
    assert gone(worker, seconds=2 - (time.monotonic() - started))
    assert run.returncode == 130
    assert said.endswith("interrupted: finished cells are kept, the same command goes on from there\n")
    assert "Traceback" not in said
    assert "Nothing has been measured yet" in (folder / "index.html").read_text()
    assert not list((folder / "reports").glob("*.html"))

    rows = run_sweep_here(toy_params(), folder)
    assert finished.items() <= cells_in(folder).items()
    undisturbed = run_sweep_here(toy_params(), tmp_path / "undisturbed")
    assert determined(rows).equals(determined(undisturbed))
