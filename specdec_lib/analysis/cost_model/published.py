"""The cost model against published results that it did not see."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from specdec_lib.analysis.cost_model.data_sheet import Corner, DataSheet, Range, corners, step_costs
from specdec_lib.analysis.theory import expected_tokens, walltime_improvement
from specdec_lib.hardware.catalog import LAYER, Published, load_gpus, load_published
from specdec_lib.hardware.costs import layer_of

AIM = 0.25
COLUMNS = ["point", "measure", "setting", "published", "predicted", "predicted_low", "predicted_high", "ratio"]
COLUMNS += ["source", "note"]


def published_table() -> pd.DataFrame:
    """One line per published result: what it is, its source, the published and the predicted value, and their ratio.

    `predicted_low` and `predicted_high` are the band of the assumptions.
    """
    lines = []
    for name, point in load_published().items():
        band = predicted(point)
        facts = {"point": name} | point.model_dump(include={"measure", "setting", "note"})
        facts |= {"published": point.value, "source": point.source + " (secondary)" * point.secondary}
        numbers = {"predicted": band.value, "predicted_low": band.low, "predicted_high": band.high}
        lines.append(facts | numbers | {"ratio": band.value / point.value})
    return pd.DataFrame(lines, columns=COLUMNS)


def predicted(point: Published) -> Range:
    """What the model says of a published setting, with its band."""
    if point.measure == "formula":
        assert point.acceptance_rate
        assert point.num_draft_tokens
        assert point.cost_ratio is not None
        value = walltime_improvement(point.acceptance_rate, point.num_draft_tokens, point.cost_ratio)
        return Range(value, value, value)
    assert point.engine
    choices, tokens = corners(point.engine), _tokens_per_pass(point)
    others = [_value(point, corner, each) for corner in choices for each in tokens]
    return Range(min(others), _value(point, choices[0], tokens.value), max(others))


def _tokens_per_pass(point: Published) -> Range:
    if point.measure == "tokens_per_second":
        return Range(1, 1, 1)
    if point.tokens_per_pass is not None:
        return Range(*(point.tokens_per_pass,) * 3)
    assert point.num_draft_tokens
    assert point.acceptance_rate
    assert point.acceptance_rate_low
    assert point.acceptance_rate_high
    rates = (point.acceptance_rate_low, point.acceptance_rate, point.acceptance_rate_high)
    return Range(*(expected_tokens(rate, point.num_draft_tokens) for rate in rates))


def _value(point: Published, corner: Corner, tokens: float) -> float:
    assert point.gpu
    assert point.engine
    assert point.dtype
    assert point.target
    target, gpu, batch = point.target, load_gpus()[point.gpu], point.batch_size
    machine = DataSheet(gpu, corner, point.dtype, point.engine, point.num_gpus)
    pieces = step_costs(
        machine,
        target,
        layer_of(target) if point.draft == LAYER else point.draft,
        batch=batch,
        num_draft_tokens=point.num_draft_tokens or 1,
        context=point.context_tokens,
        draft_machine=replace(machine, num_gpus=1),
    )
    if point.measure == "tokens_per_second":
        return batch / pieces.baseline
    if point.verified_tokens is not None:
        pass_ = machine.pass_(target, batch, point.verified_tokens, point.context_tokens)
        pieces = pieces._replace(verify_pass=pass_)
    return pieces.speedup(tokens)
