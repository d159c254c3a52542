"""What the formula predicts from one gamma, and where curves cross 1."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis import metrics
from specdec_lib.analysis.crossover import crossing
from specdec_lib.analysis.prediction import predicted_speedups
from specdec_lib.analysis.theory import expected_tokens, walltime_improvement


def test_a_machine_that_obeys_the_formula_is_predicted_exactly():
    """Acceptance 0.6 at every position, a draft token costs a tenth of a step."""
    gammas = [1, 2, 4]
    lines = pd.DataFrame(
        {
            "method": "draft",
            "temperature": 0.0,
            "num_draft_tokens": gammas,
            "accepted_tokens": [600] * 3,
            "tested_tokens": [1000] * 3,
            "mean_acceptance_length": [expected_tokens(0.6, gamma) for gamma in gammas],
            "speedup": [walltime_improvement(0.6, gamma, 0.1) for gamma in gammas],
        }
    )
    predicted = predicted_speedups(lines)
    assert predicted["speedup"].tolist() == pytest.approx(lines["speedup"].tolist())
    assert predicted["cost_ratio"].tolist() == pytest.approx([0.1] * 3)
    assert set(predicted["evidence"]) == {"predicted"}


def test_every_measured_curve_has_a_prediction_and_the_baseline_has_none():
    params = study()
    lines = metrics.along(metrics.speedups(synthetic_rows(params)), params, "num_draft_tokens")
    predicted = predicted_speedups(lines)
    assert len(predicted) == (lines["method"] != metrics.BASELINE).sum()
    assert predicted_speedups(lines[lines["method"] == metrics.BASELINE]).empty


@pytest.mark.parametrize(
    ("speedups", "batch"), [([1.5, 1.25, 0.8], 8), ([1.5, 1.2, 1.1], np.inf), ([0.9, 0.8, 0.7], 0)]
)
def test_a_crossing_lies_between_the_points_around_it(speedups, batch):
    """On logarithms of both: 1.25 and 1 / 1.25 lie as far from 1 as 4 and 16 from 8."""
    assert crossing(np.array([1.0, 4.0, 16.0]), np.log(speedups)) == pytest.approx(batch)
