"""The cost model against the world: predictions of published results that it did not see."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.cost_model import speculative_step
from specdec_lib.analysis.gpu_predictions import Corner, Range, corners, data_sheet_machine, one_layer
from specdec_lib.analysis.theory import expected_tokens, walltime_improvement
from specdec_lib.hardware.catalog import Published, load_gpus, load_published
from specdec_lib.models.shape import known_shape

AIM = 0.25


def honesty_table(points: dict[str, Published] | None = None) -> pd.DataFrame:
    """One line per published result: what it is, its source, the published and the predicted value, and their ratio.

    `predicted_low` and `predicted_high` are the band of the assumptions. `inside` says whether the band holds the
    published value. What is wrong stays.
    """
    lines = []
    for name, point in (points if points is not None else load_published()).items():
        band = predicted(point)
        lines.append(
            {
                "point": name,
                "measure": point.measure,
                "setting": point.setting,
                "published": point.value,
                "predicted": band.value,
                "predicted_low": band.low,
                "predicted_high": band.high,
                "ratio": band.value / point.value,
                "inside": band.low <= point.value <= band.high,
                "source": point.source + (" (secondary)" if point.secondary else ""),
                "date": point.date,
                "note": point.note,
            }
        )
    return pd.DataFrame(lines)


def finding_honesty(table: pd.DataFrame) -> str:
    """How far off the median point and the worst are."""
    off = (table["ratio"] - 1).abs()
    worst = table.loc[off.idxmax()]
    parts = [f"{measure} {(group['ratio'] - 1).abs().median():.0%}" for measure, group in table.groupby("measure")]
    return (
        f"Over {len(table)} published points the median prediction is off by {off.median():.0%} (aim {AIM:.0%}): "
        f"{', '.join(parts)}. {int((off <= AIM).sum())} are within {AIM:.0%}. Worst: {worst['setting']}, "
        f"{worst['predicted']:.3g} predicted, {worst['published']:.3g} published."
    )


def predicted(point: Published) -> Range:
    """What the model says of a published setting, with its band.

    Raises:
        ValueError: the point lacks what a prediction of its kind needs.
    """
    if point.measure == "formula":
        if point.acceptance_rate is None or point.num_draft_tokens is None or point.cost_ratio is None:
            raise ValueError("a formula needs acceptance_rate, num_draft_tokens and cost_ratio")
        value = walltime_improvement(point.acceptance_rate, point.num_draft_tokens, point.cost_ratio)
        return Range(value, value, value)
    assert point.engine is not None
    choices = corners(point.engine)
    tokens = _tokens_per_pass(point)
    middle = _value(point, choices[0], tokens.value)
    others = [_value(point, corner, each) for corner in choices for each in tokens]
    return Range(min(others), middle, max(others))


def _tokens_per_pass(point: Published) -> Range:
    if point.tokens_per_pass is not None:
        return Range(*(point.tokens_per_pass,) * 3)
    if point.measure == "tokens_per_second":
        return Range(1, 1, 1)
    rates = (point.acceptance_rate_low, point.acceptance_rate, point.acceptance_rate_high)
    if point.num_draft_tokens is None or None in rates:
        raise ValueError("a speedup needs num_draft_tokens, and tokens_per_pass or an acceptance_rate with its range")
    return Range(*(expected_tokens(rate, point.num_draft_tokens) for rate in rates if rate is not None))


def _value(point: Published, corner: Corner, tokens: float) -> float:
    if point.gpu is None or point.engine is None or point.dtype is None or point.target is None:
        raise ValueError("a prediction needs gpu, engine, dtype and target")
    target, gpu = known_shape(point.target), load_gpus()[point.gpu]
    machine = data_sheet_machine(gpu, corner, dtype=point.dtype, engine=point.engine, num_gpus=point.num_gpus)
    if point.measure == "tokens_per_second":
        step = machine.pass_(target, point.batch_size, 1, point.context_tokens)
        return point.batch_size / (step + machine.sampling(target, point.batch_size, 1))
    gamma = point.num_draft_tokens or 1
    draft = one_layer(target) if point.draft == "layer" else known_shape(point.draft) if point.draft else None
    pieces = speculative_step(
        machine,
        target,
        draft,
        batch=point.batch_size,
        num_draft_tokens=gamma,
        context=point.context_tokens,
        draft_machine=data_sheet_machine(gpu, corner, dtype=point.dtype, engine=point.engine),
    )
    if point.verified_tokens is None:
        return pieces.speedup(tokens)
    verify = machine.pass_(target, point.batch_size, point.verified_tokens, point.context_tokens)
    return tokens * pieces.baseline / (verify + pieces.propose + pieces.sampling)
