"""Affinity and quotas decide how many threads compute on a CPU."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from specdec_lib import load_pair
from specdec_lib.kernels import threads
from specdec_lib.kernels.threads import usable_cpus

V2 = {"proc/self/cgroup": "0::/user/study\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
V1 = {"proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}
V1 |= {"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),  # no control groups
        (V2, 8),
        (V2 | {"sys/fs/cgroup/user/study/cpu.max": "300000 100000\n"}, 3),
        (V2 | {"sys/fs/cgroup/user/study/cpu.max": "max 100000\n", "sys/fs/cgroup/user/cpu.max": "200000 100000"}, 2),
        (V2 | {"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),  # a container sees its own group as the topmost
        (V2 | {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (V2 | {"sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),
        (V1, 8),
        (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n"}, 4),
        (
            V1
            | {f"sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_{n}_us": f"{v}\n" for n, v in (("quota", 150), ("period", 100))},
            1,
        ),
        (V2 | {"sys/fs/cgroup/cpu.max": "of next year"}, 8),
    ],
)
def test_a_quota_is_read_in_either_version(files, cpus, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus(tmp_path) == cpus


def test_a_pair_gets_no_more_threads_than_cpus_and_says_so(monkeypatch, caplog):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "usable_cpus", lambda: 2)
    try:
        torch.set_num_threads(4)
        with caplog.at_level(logging.WARNING):
            load_pair("toy")
        assert torch.get_num_threads() == 2
        assert "4 threads would share 2 CPUs: 2 compute" in caplog.text
        torch.set_num_threads(1)
        load_pair("toy")
        assert torch.get_num_threads() == 1, "fewer are the user's choice"
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_on_one_cpu_computes_with_one_thread_whatever_was_asked_for():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import torch; "
        "from specdec_lib.kernels.threads import fit_threads; fit_threads(); print(torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"
