"""The soak in short: real faults at random times for some seconds, then nothing lost and nothing doubled."""

import os

import pytest
from soak import FAULTS, Memory, soak


@pytest.mark.slow
def test_a_sweep_under_random_faults_ends_with_the_undisturbed_table(tmp_path):
    """Growth takes minutes to tell, which `make soak` has."""
    verdict = soak(tmp_path, num_prompts=6, seed=1, faults=len(FAULTS), mean_s=0.2, limit_s=4.0)
    assert verdict.wrong == []
    assert verdict.struck.total() >= 1  # how many more find the sweep still running depends on the machine


def test_growth_is_seen_after_the_warm_up_only():
    def life(later):
        memory = Memory()
        memory.seen["worker", 1] = [(float(s), 100 if s < 20 else later(s)) for s in range(200)]
        return memory.growth()["worker"]

    assert life(lambda s: 300) == 0
    assert life(lambda s: 300 + s) > 0.05  # the known-bad twin: a leak of a third of a percent in each second
    short = Memory()
    short.look("worker", os.getpid())
    assert short.growth() == {}
