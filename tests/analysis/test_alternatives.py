"""Draft lengths that adapt and other verification rules, next to the usual ones of the same study."""

import pandas as pd
import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis.headline import every_gamma, headline
from specdec_lib.analysis.sweep.alternatives import compared_alternatives
from specdec_lib.report.tables.readable import readable
from specdec_lib.report.tables.sweep import alternatives_table

SMALL = {"batch_sizes": [1], "prompt_tokens": [0], "max_new_tokens": [48], "methods": ["draft"]}
PARAMS = study(**SMALL, draft_length=["fixed", "confidence:0.4"])


def rows_of_two_lengths(time):
    """With the second length every token takes `time` times as long, whatever gamma is."""
    rows = synthetic_rows(PARAMS)
    drafted = rows["num_draft_tokens"].notna()
    fixed = rows.assign(draft_length=rows["draft_length"].mask(drafted, "fixed"))
    other = fixed[drafted].assign(draft_length="confidence:0.4")
    return pd.concat([fixed, other.assign(tpot_ms=other["tpot_ms"] * time)], ignore_index=True)


@pytest.mark.parametrize("time", [0.9, 1.2])
def test_gain_and_loss_are_ratios_to_the_fixed_length_at_its_own_best_gamma(time):
    lines = compared_alternatives(rows_of_two_lengths(time), PARAMS, "draft_length")
    assert len(lines) == 2 * len(PARAMS.temperatures)
    gains = lines.set_index(["draft_length", "temperature"])["gain"]
    assert gains["fixed"].tolist() == [1.0, 1.0]
    assert gains["confidence:0.4"].tolist() == pytest.approx([1 / time] * 2)
    shown = alternatives_table(lines)
    assert shown["draft length"].tolist() == ["while likely (0.4)", "always γ"] * 2
    assert shown["over the usual one (×)"].tolist() == [f"{1 / time:.3f}", "1.000"] * 2


def test_the_headline_and_what_follows_from_it_have_the_first_length_alone():
    rows = rows_of_two_lengths(0.9)
    assert set(headline(rows, PARAMS)["draft_length"].dropna()) == {"fixed"}
    assert set(every_gamma(rows, PARAMS)["draft_length"].dropna()) == {"fixed"}
    first = PARAMS.model_copy(update={"draft_length": ["confidence:0.4"]})
    assert set(headline(rows, first)["draft_length"].dropna()) == {"confidence:0.4"}


def test_a_study_of_one_length_has_nothing_to_compare_and_no_column_for_it():
    assert compared_alternatives(synthetic_rows(PARAMS), PARAMS, "draft_length").empty
    columns = ["method", "draft_length", "speedup"]
    assert "draft length" not in readable(headline(synthetic_rows(PARAMS), PARAMS), columns)
    several = compared_alternatives(rows_of_two_lengths(0.9), PARAMS, "draft_length")
    assert "draft length" in readable(several, columns)


def test_rules_are_compared_where_chance_decides_and_with_the_first_draft_length():
    params = study(**SMALL, draft_length=["fixed", "confidence:0.4"], verification=["token", "block"])
    rows = rows_of_two_lengths(0.5)
    usual = rows[rows["draft_length"] != "confidence:0.4"]
    other = usual[usual["num_draft_tokens"].notna() & (usual["temperature"] > 0)].assign(verification="block")
    rows = pd.concat([rows, other.assign(tpot_ms=other["tpot_ms"] * 0.9)], ignore_index=True)
    lines = compared_alternatives(rows, params, "verification")
    assert set(lines["temperature"]) == {1.0}
    assert lines.set_index("verification")["gain"].to_dict() == {"block": pytest.approx(1 / 0.9), "token": 1.0}
    assert alternatives_table(lines)["verification"].tolist() == ["block", "token by token"]
    assert set(headline(rows, params)["verification"].dropna()) == {"token"}
    assert set(compared_alternatives(rows, params, "draft_length")["verification"]) == {"token"}
