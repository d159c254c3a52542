"""A study on a Ray cluster: machines of two declared types, all of them here; one is killed, and a worker."""

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toy_sweep import cells_in, determined, toy_params

from specdec_lib.params_files import load_params
from specdec_lib.study.run_folder import read_environment
from specdec_lib.study.sweep import gather, run_sweep_here
from specdec_lib.study.workers import cluster
from specdec_lib.study.workers.cluster import Device, GroupTask, adopt, code_hash, run_blocks_on_cluster, run_group
from specdec_lib.study.workers.supervisor import COMMAND

ray = pytest.importorskip("ray", reason="Ray is not installed: make cluster installs it")
ROOT = Path(__file__).resolve().parents[2]
HALF = 2 * 3  # cells: the two blocks at temperature 0, each a baseline and two ways of speculating
H100, A100, H200 = (Device(name, gpus=1, cpus=1) for name in ("H100", "A100", "H200"))


def machine(kind):
    """What a machine with one device of this type declares."""
    own = {"num_cpus": 1, "num_gpus": 1, "resources": {f"accelerator_type:{kind}": 1}}
    return own | {"include_dashboard": False, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def nodes():
    """Processes that pretend to be machines: one with an A100 at the head, two with an H100, which are returned."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setattr(cluster, "GROUPS_PER_DEVICE", 1)
        eager = {"_system_config": {"worker_niceness": 0}}  # else workers wait for whatever else this machine does
        machines = Cluster(initialize_head=True, head_node_args=machine("A100") | eager)
        with_h100 = [machines.add_node(wait=False, **machine("H100")) for _ in range(2)]
        machines.wait_for_nodes()
        ray.init(address=machines.address, logging_level="ERROR")
        yield machines, with_h100
        ray.shutdown()
        machines.shutdown()


@pytest.fixture
def params():
    return toy_params()


def places(folder):
    """Where the runs of a folder took place: pairs of node and process."""
    return {(run["place"]["node"], run["place"]["worker"]) for run in read_environment(folder).get("runs", {}).values()}


def test_a_type_that_no_machine_has_is_refused_at_once(nodes, params, tmp_path):
    """Ray itself would wait for ever."""
    with pytest.raises(ValueError, match=r"has no H200 with 1 GPUs and 1 CPUs: it has 3 machines with A100, H100;"):
        run_blocks_on_cluster(params, tmp_path, "auto", device=H200)
    assert not list(tmp_path.iterdir())


def kill_half_way(folder, machine, machines, gate):
    """When each group has finished a block: kill Ray's worker on one machine and all of the other, then open the gate.

    Returns the cells that were finished by then, and the machines that they came from.
    """
    while len(finished := cells_in(folder)) < HALF:
        time.sleep(0.1)
    seen = places(folder)
    (worker,) = [worker for node, worker in seen if node != machine.node_id]
    os.kill(worker, signal.SIGKILL)
    machines.remove_node(machine)
    gate.touch()
    return finished, {node for node, _ in seen}


@pytest.mark.slow
def test_a_killed_machine_and_a_killed_worker_lose_nothing(nodes, params, tmp_path, capsys):
    """Both in the middle of a group of blocks of their own; the table is the one of a run at home."""
    machines, with_h100 = nodes
    gate = tmp_path / "gate"
    gated = (sys.executable, str(ROOT / "tests" / "support" / "gated_worker.py"), str(gate))
    with ThreadPoolExecutor(1) as other:
        killing = other.submit(kill_half_way, tmp_path, with_h100[0], machines, gate)
        run_blocks_on_cluster(params, tmp_path, "auto", device=H100, command=gated)
    finished, ran_on = killing.result()
    assert ran_on == {node.node_id for node in with_h100}
    assert capsys.readouterr().out.count("are sent again") == 2
    assert determined(gather(params, tmp_path)).equals(determined(run_sweep_here(params, tmp_path / "home")))
    assert finished.items() <= cells_in(tmp_path).items(), "nothing finished was run again"
    assert {"calibration.json", "step_costs.json", "machine.key"} <= {path.name for path in tmp_path.iterdir()}


def task(params, code=None):
    """The first block, for a machine that has nothing of it."""
    return GroupTask(params, (0,), False, {}, code or code_hash(), threads=None, command=COMMAND, limit_s=None)


def test_a_machine_with_another_device_than_its_type_says_is_refused_by_the_task(params, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    study = params.model_copy(update={"device_name": "H100"})
    with pytest.raises(ValueError, match="needs a device whose name contains 'H100', but this machine has"):
        list(run_group(task(study)))


def test_a_machine_with_another_version_of_the_library_is_refused_by_the_task(params):
    with pytest.raises(ValueError, match="has another specdec_lib: check out the same commit on every machine"):
        list(run_group(task(params, code="0" * 16)))


def test_machines_that_compute_with_something_else_do_not_stand_in_one_table(tmp_path):
    sources = []

    def report(name):
        facts = {"run_id": "1", "runs": {"1": {}}, "source": {"device_name": name}}
        adopt(tmp_path, {"node": "a"}, {"environment.json": json.dumps(facts)}, sources)

    report("NVIDIA H100 PCIe")
    with pytest.raises(ValueError, match="differ in device_name: NVIDIA H100 PCIe and NVIDIA H100 80GB HBM3"):
        report("NVIDIA H100 80GB HBM3")


def test_a_gpu_study_asks_for_one_device_of_its_type_for_each_group(params):
    assert Device.of(load_params("h100")) == Device("H100", gpus=1, cpus=1)
    one, four = ({"CPU": 16.0, "GPU": number, "accelerator_type:H100": 1.0} for number in (1.0, 4.0))
    assert [Device.of(load_params("h100")).on(resources) for resources in (one, four, {"CPU": 64.0})] == [1, 4, 0]


def test_machines_without_ray_or_cluster_are_one_line(params, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="needs Ray, which is not installed: run make cluster"):
        run_blocks_on_cluster(params, tmp_path, "auto")
