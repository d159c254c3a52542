"""What a cluster has to do for a study that it ran before, with a stand-in for Ray that runs tasks here."""

from types import SimpleNamespace

import pytest
from quick_worker import QUICK
from toy_sweep import toy_params

from specdec_lib.study import runner
from specdec_lib.study.environment_file import read_environment
from specdec_lib.study.sweep import run_sweep_here
from specdec_lib.study.workers.cluster import Device, _Run
from specdec_lib.study.workers.cluster_task import run_group


class RayHere:
    """What `cluster` asks of Ray: a machine, and tasks that report as they go."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError)  # none of which happens

    def __init__(self):
        self.sent = []

    def cluster_resources(self):
        return {"CPU": 8.0}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 8.0}}]

    def remote(self, function):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start))

    def _start(self, task):
        self.sent.append(task.blocks)
        return run_group(task, {"node": "here", "worker": 1})

    def wait(self, streams, num_returns, timeout):
        return streams[:num_returns], []

    def get(self, report):
        return report


@pytest.mark.slow
@pytest.mark.parametrize(("kernels", "missing"), [(None, []), ("kernels of last year", [0, 1, 2, 3])])
def test_a_finished_study_is_measured_again_if_the_cluster_computes_otherwise_by_now(
    tmp_path, monkeypatch, kernels, missing
):
    """One machine is asked before anything is planned: what the last run computed with is no news."""
    with monkeypatch.context() as then:
        if kernels:
            then.setattr(runner, "compiler_of", lambda target: kernels)
        run_sweep_here(toy_params(), tmp_path)
    ray = RayHere()
    run = _Run(ray, toy_params(), tmp_path, Device(None, gpus=0, cpus=1), QUICK)
    assert run.missing() == missing
    assert ray.sent == [()]
    assert run.missing() == missing
    assert ray.sent == [()], "once"
    assert read_environment(tmp_path)["ended"], "also a run that found nothing to do has an end"


def test_a_study_that_never_ran_asks_nobody(tmp_path):
    run = _Run(RayHere(), toy_params(), tmp_path, Device(None, gpus=0, cpus=1), QUICK)
    assert run.missing() == [0, 1, 2, 3]
    assert not run.ray.sent
