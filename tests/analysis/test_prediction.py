"""What the formula predicts from measured costs, and where curves cross 1."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis import metrics
from specdec_lib.analysis.headline import along
from specdec_lib.analysis.prediction import predicted_speedups
from specdec_lib.analysis.sweep.crossover import crossing
from specdec_lib.analysis.theory import expected_tokens, walltime_improvement
from specdec_lib.methods import AUTOREGRESSIVE

GAMMAS = [1, 2, 4]
ROWS = synthetic_rows()


def costs(verify_ms=2.0):
    """A pass takes 10 ms and `verify_ms` for each further token, a drafted token 1 ms, and one by lookup 0.1 ms."""
    rows = [("target", tokens, 10 + verify_ms * (tokens - 1)) for tokens in range(1, 8)]
    rows += [("draft", tokens, 1.0 * tokens) for tokens in range(1, 7)]
    rows += [("ngram", tokens, 0.1 * tokens) for tokens in range(1, 7)]
    table = pd.DataFrame(rows, columns=["model", "num_tokens", "ms"])
    return table.assign(batch_size=1, context_tokens=150, temperature=np.nan)


def lines(speedups):
    """Acceptance 0.6 at every position, natural prompts."""
    table = {"num_draft_tokens": GAMMAS, "accepted_tokens": [600] * 3, "tested_tokens": [1000] * 3, "speedup": speedups}
    setting = {"method": "draft", "temperature": 0.0, "batch_size": 1, "prompt_tokens": np.nan, "max_new_tokens": 48}
    return pd.DataFrame(table | setting)


def test_a_machine_that_obeys_the_theorem_is_predicted_exactly():
    """Passes cost the same whatever their length, and a draft token a tenth of one."""
    expected = [walltime_improvement(0.6, gamma, 0.1) for gamma in GAMMAS]
    predicted = predicted_speedups(lines(expected), costs(verify_ms=0), ROWS)
    assert predicted["speedup"].tolist() == pytest.approx(expected)
    assert predicted["cost_ratio"].tolist() == pytest.approx([0.1] * 3)
    assert set(predicted["evidence"]) == {"predicted"}


def test_what_verification_costs_is_paid_and_no_time_of_the_sweep_is_looked_at():
    predicted, other = (predicted_speedups(lines([ratio] * 3), costs(), ROWS) for ratio in (1.0, 2.0))
    assert predicted["verification_cost"].tolist() == pytest.approx([1.2, 1.4, 1.8])
    expected = [expected_tokens(0.6, g) / (1 + 0.2 * g + 0.1 * g) for g in GAMMAS]
    assert predicted["speedup"].tolist() == pytest.approx(expected)
    assert predicted.equals(other)


def test_what_was_not_timed_is_not_predicted():
    known = costs()
    assert predicted_speedups(lines([1.0] * 3), known[known["model"] != "draft"], ROWS)["speedup"].isna().all()
    assert predicted_speedups(lines([1.0] * 3), known[known["num_tokens"] < 4], ROWS)["speedup"].notna().tolist() == [
        *(True, True, False)
    ]


def test_every_measured_curve_has_a_prediction_and_the_baseline_has_none():
    params = study()
    measured = metrics.speedups(along(synthetic_rows(params), params, "num_draft_tokens"))
    predicted = predicted_speedups(measured, costs(), ROWS)
    assert len(predicted) == (measured["method"] != AUTOREGRESSIVE).sum()
    assert predicted_speedups(measured[measured["method"] == AUTOREGRESSIVE], costs(), ROWS).empty


@pytest.mark.parametrize(
    ("speedups", "batch"), [([1.5, 1.25, 0.8], 8), ([1.5, 1.2, 1.1], np.inf), ([0.9, 0.8, 0.7], 0)]
)
def test_a_crossing_lies_between_the_points_around_it(speedups, batch):
    """On logarithms of both: 1.25 and 1 / 1.25 lie as far from 1 as 4 and 16 from 8."""
    assert crossing(np.array([1.0, 4.0, 16.0]), np.log(speedups)) == pytest.approx(batch)
