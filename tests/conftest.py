"""One thread for every process of the tests, and what several of them set up alike."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # toys lose more to threads that wait for one another than they gain


@pytest.fixture(scope="session", autouse=True)
def hurried():
    """Sweeps measure their machine in a moment, here and in the workers that they start."""
    from quick_worker import QUICK, hurry

    from specdec_lib.study.sweep import run_sweep

    hurry()
    run_sweep.__kwdefaults__["command"] = QUICK


@pytest.fixture
def recorder(monkeypatch):
    """Every decoding in the test goes the way of a GPU, with a graph for each 8 positions."""
    from specdec_lib.decoding import captured_loop
    from specdec_lib.machine.recorded_steps import Recorder

    recorder = Recorder()
    monkeypatch.setattr(captured_loop, "CudaGraphs", lambda device: recorder)
    monkeypatch.setattr(captured_loop, "why_not_captured", lambda target: getattr(target.kept, "failure", None))
    monkeypatch.setattr(captured_loop, "BUCKET", 8)
    return recorder


def pytest_configure(config):
    """Processes take files in the order below; xdist would begin with those of most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that at the end no process works alone on one of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
