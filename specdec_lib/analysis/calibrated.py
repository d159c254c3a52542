"""The calibration error of a run, from the files that it left."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.calibration_error import COLUMNS, error_table, finding_error, fit
from specdec_lib.analysis.comparison import Run
from specdec_lib.analysis.step_table import read_step_costs
from specdec_lib.machine.calibration import read_calibration


def calibrated_errors(run: Run) -> tuple[str, pd.DataFrame]:
    """What the cost model gets wrong on this run's machine: a sentence, and the table behind it.

    The fit sees the largest gamma of the params that was timed; a run that was not calibrated, or not
    as its steps ran, has an empty table.
    """
    if (spread := run.params.tensor_parallel) > 1:
        return f"not calibrated: the cost model knows of one device, not of {spread}", pd.DataFrame(columns=COLUMNS)
    try:
        calibration, costs = read_calibration(run.folder), read_step_costs(run.folder)
        timed = set(costs.loc[costs["model"] == "draft", "num_tokens"])
        if not timed:
            raise ValueError("the costs of a step were not measured")
        gamma = max((gamma for gamma in run.params.num_draft_tokens if gamma in timed), default=max(timed))
        model = fit(calibration, costs, run.rows, gamma)
    except ValueError as error:
        return f"not calibrated: {error}", pd.DataFrame(columns=COLUMNS)
    errors = error_table(model, costs, run.rows)
    return f"fitted with γ = {gamma}. {finding_error(errors)}", errors
