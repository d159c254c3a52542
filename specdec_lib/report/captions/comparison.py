"""What the comparison of GPUs shows, in one or two sentences computed from its tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from specdec_lib.analysis.comparison import Run
from specdec_lib.analysis.cost_model import calibrated, published
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import price
from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import span

NONE = "Nothing to compare here: run a study first, with make run GPU=<name>."


def sources(runs: Sequence[Run], presets: Sequence[StudyParams]) -> str:
    """Which studies are measured here, on what and at whose price, and which are predicted."""
    measured = [
        f"{run.params.gpu} on {run.product} (priced as {run.price.vendor}, read on {run.price.date})" for run in runs
    ]
    predicted = [f"{params.gpu} as {price(params.price).gpu}" for params in presets]
    return f"Measured: {', '.join(measured) or 'nothing'}. Predicted: {', '.join(predicted) or 'nothing'}."


def finding_headlines(table: pd.DataFrame) -> str:
    """The least time per token over all machines, and a caution where pairs differ."""
    timed = table[table["tpot_ms"].notna()]
    if timed.empty:
        return NONE
    best = timed.loc[timed["tpot_ms"].idxmin()]
    text = (
        f"Least time per token at the headline setting: {best['tpot_ms']:.3g} ms on {best['gpu']} with "
        f"{label(best['method'])} ({best['pair']}, {best['evidence']})."
    )
    caution = " Different pairs are different work: compare machines within one pair only."
    return text + caution * (table["pair"].nunique() > 1)


def finding_break_even(lines: pd.DataFrame, ratios: pd.DataFrame) -> str:
    """At which price ratio the dearer GPU is predicted to be the cheaper per token, and what vendors ask."""
    curve = lines[lines["acceptance_rate"].notna()]
    if curve.empty:
        return NONE
    first = lines.iloc[0]
    text = (
        f"Predicted: at batch {first['batch_size']} {first['dearer']} breaks even with {first['cheaper']} at "
        f"{span(curve['price_ratio'])} times the hourly price."
    )
    if ratios.empty:
        return f"{text} No vendor in our list sells both."
    cheaper = ratios.loc[ratios["ratio"] < curve["price_ratio"].min(), "vendor"].unique()
    where = (
        f"at {' and '.join(cheaper)} it is the cheaper per token" if len(cheaper) else "it is surely cheaper nowhere"
    )
    return f"{text} Vendors ask {span(ratios['ratio'])} times: {where}."


def finding_error(errors: calibrated.CalibrationErrors) -> str:
    """How many points out of sample are within the aim, and the worst."""
    if errors.why_missing:
        return f"Not calibrated: {errors.why_missing.rstrip('.')}."
    outside = errors.table[errors.table["sample"] == "out of sample"]
    if outside.empty:
        return "Every measured point was used for the fit."
    size = outside["error"].abs()
    worst = outside.loc[size.idxmax()]
    return (
        f"Fitted with γ = {errors.num_draft_tokens}. Of {len(outside)} points out of sample, "
        f"{int((size <= calibrated.AIM).sum())} are within {calibrated.AIM:.0%}; the median is {size.median():.0%}. "
        f"Furthest off: {worst['quantity']} at batch {worst['batch_size']}, {worst['num_tokens']} token(s), "
        f"{worst['error']:+.0%}."
    )


def finding_published(table: pd.DataFrame) -> str:
    """How far off the median point and the worst are."""
    if table.empty:
        return "No published result is in hardware/published.yaml."
    off = (table["ratio"] - 1).abs()
    worst = table.loc[off.idxmax()]
    return (
        f"Over {len(table)} published points the median prediction is off by {off.median():.0%} "
        f"(aim {published.AIM:.0%}). Worst: {worst['setting']}, {worst['predicted']:.3g} predicted, "
        f"{worst['published']:.3g} published."
    )
