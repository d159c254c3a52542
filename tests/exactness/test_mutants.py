"""Every mutant must be rejected, by the levels that can see its bug; the sound sampler by none."""

import pytest

from specdec_lib.exactness.certificate import SOUND
from specdec_lib.exactness.mutant_battery import mutant_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table():
    return mutant_table(samples=4000, seed=0).set_index("mutant")


def test_all_mutants_are_rejected_and_the_sound_sampler_is_not(table):
    assert len(table) == 21
    assert table.index[~table["rejected"]].tolist() == [SOUND]


@pytest.mark.parametrize(
    ("mutant", "level"),
    [
        ("missing bonus token", "by_yield"),
        ("stale cache entry after a rollback", "by_greedy"),
        ("off-by-one target row", "by_greedy"),
        ("draft sampled in bfloat16, ratio in float32", "by_enumeration"),
        ("draft cut where a drawn token is unlikely", "by_enumeration"),
        ("draft draw and residual draw share a stream", "by_enumeration"),
        ("uniform and residual draw share a stream", "by_joint_law"),
        ("tokens kept after the first rejection", "by_joint_law"),
    ],
)
def test_who_sees_what(table, mutant, level):
    assert table.loc[mutant, level]


def test_a_lossless_bug_has_no_bias(table):
    assert table.loc["missing bonus token", "bias"] < 1e-12
    assert table.loc["draft sampled in bfloat16, ratio in float32", "bias"] > 1e-5
