"""The cost model against published results that it did not see."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd

from specdec_lib.analysis.cost_model.gpus import Corner, Range, corners, data_sheet_machine
from specdec_lib.analysis.cost_model.machine import step_costs
from specdec_lib.analysis.theory import expected_tokens, walltime_improvement
from specdec_lib.hardware.catalog import Published, load_gpus, load_published
from specdec_lib.models.shape import ModelShape, known_shape

AIM = 0.25
COLUMNS = ["point", "measure", "setting", "published", "predicted", "predicted_low", "predicted_high", "ratio"]
COLUMNS += ["source", "note"]


def published_table(points: dict[str, Published] | None = None) -> pd.DataFrame:
    """One line per published result: what it is, its source, the published and the predicted value, and their ratio.

    `predicted_low` and `predicted_high` are the band of the assumptions.
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
                "source": point.source + (" (secondary)" if point.secondary else ""),
                "note": point.note,
            }
        )
    return pd.DataFrame(lines, columns=COLUMNS)


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
    others = [_value(point, corner, each) for corner in choices for each in tokens]
    return Range(min(others), _value(point, choices[0], tokens.value), max(others))


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
    target, gpu, batch = known_shape(point.target), load_gpus()[point.gpu], point.batch_size
    one_gpu = partial(data_sheet_machine, gpu, corner, dtype=point.dtype, engine=point.engine)
    machine = one_gpu(num_gpus=point.num_gpus)
    pieces = step_costs(
        machine,
        target,
        _draft_shape(point.draft, target),
        batch=batch,
        num_draft_tokens=point.num_draft_tokens or 1,
        context=point.context_tokens,
        draft_machine=one_gpu(),
    )
    if point.measure == "tokens_per_second":
        return batch / pieces.baseline
    if point.verified_tokens is not None:
        pieces = replace(pieces, verify_pass=machine.pass_(target, batch, point.verified_tokens, point.context_tokens))
    return pieces.speedup(tokens)


def _draft_shape(draft: str | None, target: ModelShape) -> ModelShape | None:
    """The shape of a named draft; "layer" is one layer of the target and its output layer, as EAGLE's."""
    if draft == "layer":
        return replace(target, name=draft, layer_weights=target.layer_weights // target.num_layers, num_layers=1)
    return known_shape(draft) if draft else None
