"""A study on a Ray cluster: nodes of two declared types on this machine, one killed, a worker killed, the same table."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from test_faults import determined

from specdec_lib.config import load_params
from specdec_lib.measure import cluster
from specdec_lib.measure.cluster import Device, run_blocks_on_cluster
from specdec_lib.measure.environment import read_environment
from specdec_lib.measure.sweep import gather, run_sweep_here

ray = pytest.importorskip("ray", reason="Ray is not installed: make cluster installs it")
ROOT = Path(__file__).resolve().parent.parent
SLOW = (sys.executable, str(ROOT / "tests" / "slow_worker.py"))
H100, A100, H200 = (Device(name, gpus=1, cpus=1) for name in ("H100", "A100", "H200"))


@pytest.fixture(scope="module")
def nodes():
    """A cluster of processes that pretend to be machines: two with an H100, one with an A100; by type."""
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setattr(cluster, "GROUPS_PER_DEVICE", 1)
        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
        by_type = {
            kind: [machines.add_node(num_cpus=1, num_gpus=1, resources={f"accelerator_type:{kind}": 1}, **quiet)]
            for kind in ("H100", "A100")
        }
        by_type["H100"].append(
            machines.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:H100": 1}, **quiet)
        )
        machines.wait_for_nodes()
        ray.init(address=machines.address, logging_level="ERROR")
        yield by_type, machines
        ray.shutdown()
        machines.shutdown()


@pytest.fixture(scope="module")
def params():
    small = {"num_draft_tokens": [4], "batch_sizes": [1], "repetitions": 2, "max_new_tokens": [8]}
    return load_params("smoke").model_copy(update=small)


@pytest.fixture(scope="module")
def at_home(params, tmp_path_factory):
    return determined(run_sweep_here(params, tmp_path_factory.mktemp("home")))


def places(folder):
    """Where the runs of a folder took place: pairs of node and process."""
    return {(run["place"]["node"], run["place"]["worker"]) for run in read_environment(folder).get("runs", {}).values()}


def test_a_type_that_no_machine_has_is_refused_at_once(nodes, params, tmp_path):
    """Ray itself would wait for ever."""
    with pytest.raises(ValueError, match=r"has no H200 with 1 GPUs and 1 CPUs: it has 4 machines with A100, H100;"):
        run_blocks_on_cluster(params, tmp_path, "auto", device=H200)
    assert not list(tmp_path.iterdir())


def test_the_table_is_the_one_of_a_run_at_home(nodes, params, at_home, tmp_path, capsys):
    by_type, _ = nodes
    run_blocks_on_cluster(params, tmp_path, "auto", device=H100)
    assert determined(gather(params, tmp_path)).equals(at_home)
    assert {node for node, _ in places(tmp_path)} == {node.node_id for node in by_type["H100"]}
    assert {"calibration.json", "step_costs.json", "machine.key"} <= {path.name for path in tmp_path.iterdir()}
    capsys.readouterr()
    run_blocks_on_cluster(params, tmp_path, "auto", device=H100)  # nothing is left to do
    assert "groups" not in capsys.readouterr().out


def test_a_killed_machine_and_a_killed_worker_lose_nothing(nodes, params, at_home, tmp_path, capsys):
    by_type, machines = nodes
    run = threading.Thread(
        target=run_blocks_on_cluster, args=(params, tmp_path, "auto"), kwargs={"device": H100, "command": SLOW}
    )
    run.start()
    while len(places(tmp_path)) < 2 or not list((tmp_path / "cells").glob("*.json")):
        assert run.is_alive()
        time.sleep(0.05)
    before = {path: path.read_text() for path in (tmp_path / "cells").glob("*.json")}
    lost = by_type["H100"][0]
    workers = [worker for node, worker in places(tmp_path) if node != lost.node_id]
    os.kill(workers[0], signal.SIGKILL)
    machines.remove_node(lost)
    run.join()
    assert determined(gather(params, tmp_path)).equals(at_home)
    assert capsys.readouterr().out.count("are sent again") == 2
    assert before
    assert len(places(tmp_path)) > 2


def test_machines_without_ray_or_cluster_are_one_line(params, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="needs Ray, which is not installed: run make cluster"):
        run_blocks_on_cluster(params, tmp_path, "auto")
