"""The verification cost curve and the draft's cost of a machine whose every cost is known."""

import pandas as pd
import pytest
from synthetic_rows import synthetic_rows

from specdec_lib.analysis.step_table import verification_costs
from specdec_lib.report.tables.sweep import verification_table

ROWS = synthetic_rows()


def known_costs():
    """A pass costs 10 ms and 1 ms for each further token and row; drafting a token costs 2 ms."""
    rows = []
    for batch, context in ((1, 100), (1, 300), (4, 100)):
        for temperature in (0.0, 1.0):
            rows += [("target", batch, context, m, temperature, 9.0 + batch * m) for m in (1, 5, 16)]
            rows += [("draft", batch, context, m, temperature, 2.0 * m) for m in (4, 15)]
    return pd.DataFrame(rows, columns=["model", "batch_size", "context_tokens", "num_tokens", "temperature", "ms"])


def test_v_is_the_pass_over_m_tokens_over_one_and_c_a_drafted_token_over_the_same():
    lines = verification_costs(known_costs(), ROWS).set_index(["batch_size", "context_tokens", "num_tokens"])
    assert len(lines) == 9
    assert lines.loc[(1, 100, 1), "verification_cost"] == 1
    assert lines.loc[(1, 100, 16), "verification_cost"] == pytest.approx(25 / 10)
    assert lines.loc[(4, 100, 16), "verification_cost"] == pytest.approx(73 / 13)
    assert lines.loc[(1, 300, 5), "cost_ratio"] == pytest.approx(2 / 10)
    assert pd.isna(lines.loc[(1, 100, 1), "cost_ratio"])  # no draft of one token was timed


def test_the_table_has_the_numbers_and_nothing_measured_is_an_empty_one():
    assert verification_table(verification_costs(known_costs(), ROWS))["v(m)"].iloc[-1] == "5.62"
    assert verification_table(verification_costs(known_costs().iloc[:0], ROWS)).empty
