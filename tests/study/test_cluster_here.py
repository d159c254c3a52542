"""A study on a cluster of one machine, with a stand-in for Ray that runs tasks here and loses one of them."""

from types import SimpleNamespace

import pytest
from quick_worker import QUICK
from toy_sweep import cells_in, toy_params

from specdec_lib.study.run_folder import read_environment
from specdec_lib.study.workers.cluster import Device, _run_groups, run_group


class LostError(Exception):
    """What Ray raises for a task whose machine is gone."""


class RayHere:
    """What `cluster` asks of Ray: a machine, and tasks that report as they go. The first is lost after a report."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=LostError)

    def __init__(self):
        self.sent = []

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 1.0}}]

    def remote(self, function):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start))

    def _start(self, task):
        self.sent.append(task)
        return self._reports(task, is_lost=len(self.sent) == 1)

    def _reports(self, task, is_lost):
        for changes in run_group(task):
            yield {"node": "here"}, changes
            if is_lost:
                raise LostError("gone")

    def wait(self, streams, num_returns, timeout):
        return streams[:num_returns], []

    def get(self, report):
        return report


@pytest.mark.slow
def test_a_group_that_is_lost_is_sent_again_with_what_it_had_finished(tmp_path, capsys):
    ray = RayHere()
    _run_groups(ray, toy_params(), tmp_path, Device(None, gpus=0, cpus=1), None, QUICK)
    assert [task.blocks for task in ray.sent] == [(0, 2), (1, 3), (0, 2)]
    assert "its blocks are sent again" in capsys.readouterr().out
    assert len(cells_in(tmp_path)) == 12
    assert {"calibration.json", "step_costs.json", "machine.key"} <= {path.name for path in tmp_path.iterdir()}
    assert all(run["place"] == {"node": "here"} for run in read_environment(tmp_path)["runs"].values())
