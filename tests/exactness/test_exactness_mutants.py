"""Every mutant must be rejected, by the levels that can see its bug; the sound sampler by none."""

import pytest

from specdec_lib.exactness import mutant_battery as levels
from specdec_lib.exactness.mutants import SOUND
from specdec_lib.report.captions.exactness import finding_mutants
from specdec_lib.report.tables.exactness import mutant_table


@pytest.fixture(scope="module")
def table():
    return levels.mutant_table(max_samples=4000, seed=0).set_index("mutant")


def test_all_mutants_are_rejected_and_the_sound_sampler_is_not(table):
    assert table["rejected"].sum() == len(table) - 1 >= 12
    assert not table.loc[SOUND, "rejected"]
    assert finding_mutants(table.reset_index()).startswith(f"{len(table) - 1} of {len(table) - 1} mutants are rejected")


@pytest.mark.parametrize(
    ("mutant", "level"),
    [
        ("missing bonus token", "by_yield"),
        ("stale cache entry after a rollback", "by_greedy"),
        ("off-by-one target row", "by_greedy"),
        ("draft sampled in bfloat16, ratio in float32", "by_enumeration"),
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


def test_the_table_says_at_what_sample_size(table):
    readable = mutant_table(table.reset_index()).set_index("mutant")
    assert readable.loc["off-by-one target row", "joint law, samples"] == "3,000"
    assert readable.loc[SOUND, "joint law, samples"] == "not at 12,000"
    assert readable.loc[SOUND, "caught by"] == "none"
