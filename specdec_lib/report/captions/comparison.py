"""What the comparison of GPUs shows, computed from its tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from specdec_lib.analysis.comparison import Run
from specdec_lib.analysis.cost_model import calibrated, published
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import price
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.report.captions.phrases import NOTHING


def sources(runs: Sequence[Run], presets: Sequence[StudyParams]) -> str:
    """Which studies are measured here, on what and at whose price, and which are predicted."""
    measured = [
        f"{run.params.gpu} on {run.product} (priced as {run.price.vendor}, read on {run.price.date})" for run in runs
    ]
    predicted = [f"{params.gpu} as {price(params.price).gpu}" for params in presets]
    return f"Measured: {', '.join(measured) or 'nothing'}. Predicted: {', '.join(predicted) or 'nothing'}."


def finding_fronts(lines: pd.DataFrame) -> str:
    """How many settings are on the fronts, and how many of these speculate.

    Args:
        lines: from `analysis.comparison.pareto`.
    """
    front = lines[lines["on_front"].astype(bool)]
    if front.empty:
        return NOTHING
    speculating = (front["method"] != AUTOREGRESSIVE).sum()
    return f"{len(front)} of {len(lines)} settings are on a front, and {speculating} of these speculate."


def finding_error(errors: calibrated.CalibrationErrors) -> str:
    """How many points out of sample are within the aim, and the worst."""
    if errors.why_missing:
        return f"Not calibrated: {errors.why_missing.rstrip('.')}."
    outside = errors.table[errors.table["sample"] == "out of sample"]
    if outside.empty:
        return "Every measured point was used for the fit."
    size = outside["error"].abs()
    return (
        f"Fitted with γ = {errors.num_draft_tokens}. Of {len(outside)} points out of sample, "
        f"{int((size <= calibrated.AIM).sum())} are within {calibrated.AIM:.0%}; the median is {size.median():.0%}, "
        f"the worst {size.max():.0%}."
    )


def finding_published(table: pd.DataFrame) -> str:
    """How far off the median point and the worst are."""
    if table.empty:
        return "No published result is in hardware/published.yaml."
    off = (table["ratio"] - 1).abs()
    return (
        f"Over {len(table)} published points the median prediction is off by {off.median():.0%} "
        f"(aim {published.AIM:.0%}), the worst by {off.max():.0%} ({table.loc[off.idxmax(), 'setting']})."
    )
