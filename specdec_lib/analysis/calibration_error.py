"""How wrong the cost model is on the machine that it was calibrated on, point by point.

It is fitted to batch 1, one context and decoding with one gamma; every other point is out of sample of the fit. Its
form was made while looking at runs of the embedded pair on a CPU, and held against a later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from specdec_lib.analysis import metrics
from specdec_lib.analysis.cost_model import Machine, calibrated_machine, fitted
from specdec_lib.analysis.statistics import median_interval
from specdec_lib.analysis.step_table import StepTable, why_unused
from specdec_lib.analysis.waterfall import context_of, passes_per_token
from specdec_lib.machine.calibration import Calibration
from specdec_lib.models.shape import ModelShape

AIM = 0.15
COLUMNS = ["quantity", "method", "batch_size", "context_tokens", "num_tokens", "temperature", "sample"]
COLUMNS += ["measured_ms", "measured_ms_low", "measured_ms_high", "predicted_ms", "error", "interval"]


@dataclass(frozen=True)
class FittedModel:
    """The cost model of a machine with its pair, and the one gamma that it was fitted with."""

    machine: Machine
    target: ModelShape
    draft: ModelShape
    draft_is_head: bool
    num_draft_tokens: int
    context: int
    slowdown: float  # of whole calls over their pieces timed alone: interruptions, and drift from one to the other

    def propose(self, batch: int, num_draft_tokens: int, context: float) -> float:
        """Seconds of a proposal."""
        first = _first(self.draft_is_head, num_draft_tokens)
        return self.machine.propose(self.draft, batch, num_draft_tokens, context, first)

    def in_sample(self, batch: int, context: float, num_tokens: int) -> bool:
        """Whether the fit saw a pass of this many tokens."""
        return batch == 1 and context == self.context and num_tokens in (1, self.num_draft_tokens + 1)


def fit(calibration: Calibration, costs: pd.DataFrame, rows: pd.DataFrame, num_draft_tokens: int) -> FittedModel:
    """Fit the engine's overhead at batch 1, the shortest context and one gamma.

    The baseline's whole calls say how much longer these take than their pieces.

    Args:
        costs: step costs of the machine.
        rows: results of a sweep on it, of which the baseline at batch 1 is looked at.

    Raises:
        ValueError: the costs lack batch 1 or that gamma, or costs or calibration were timed in another way than the
            steps of the rows ran.
    """
    for timed in (costs, costs.head(1).assign(replayed=calibration.replayed)):
        if reason := why_unused(timed, rows):
            raise ValueError(reason)
    table = StepTable(costs)
    context = int(costs["context_tokens"].min())
    first = _first(calibration.draft_is_head, num_draft_tokens)
    if np.isnan(table.ms("draft", 1, context, num_draft_tokens)):
        raise ValueError(f"no step cost at batch 1 with gamma {num_draft_tokens}: measure it, or fit another gamma")
    machine = fitted(
        calibrated_machine(calibration),
        calibration.target,
        calibration.draft,
        lambda model, tokens: table.ms(model, 1, context, tokens),
        context=context,
        num_draft_tokens=num_draft_tokens,
        first=first,
    )
    shapes = (calibration.target, calibration.draft, calibration.draft_is_head)
    model = FittedModel(machine, *shapes, num_draft_tokens, context, slowdown=1.0)
    seen = [r for _, r in _timed(rows).iterrows() if r["method"] == metrics.BASELINE and _fitted_setting(r)]
    ratios = [row["tpot_ms"] / _tpot_ms(model, row) for row in seen]
    return replace(model, slowdown=float(np.median(ratios))) if ratios else model


def error_table(model: FittedModel, costs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Measured against predicted milliseconds: verification cost, baseline TPOT, and TPOT with the pair's draft.

    Acceptance is taken as measured, row by row: the model predicts time, not text. `measured_ms_low` and `_high` are a
    95 % interval of the median over the times of a piece, or over the rows of a line; NaN where these were not kept.
    `interval` says how that lies to what is within the aim of the prediction: "within", "across" its edge (more
    measurements could bring the point to either side), or "beyond".

    Args:
        costs: step costs of the machine.
        rows: results of a sweep on it.
    """
    points = [*_passes(model, costs), *_lines(model, _timed(rows))]
    table = pd.DataFrame(points, columns=COLUMNS[:-2])
    errors = [table["predicted_ms"] / table[end] - 1 for end in ("measured_ms_high", "measured_ms_low")]
    return table.assign(
        error=table["predicted_ms"] / table["measured_ms"] - 1,
        interval=[_interval(*ends) for ends in zip(*errors, strict=True)],
    )


def finding_error(errors: pd.DataFrame) -> str:
    """How many points out of sample are within the aim, by quantity, and the worst."""
    outside = errors[errors["sample"] == "out of sample"]
    if outside.empty:
        return "Nothing was measured that the model had not seen."
    parts = []
    for quantity, group in outside.groupby("quantity", sort=False):
        size = group["error"].abs()
        parts.append(f"{quantity}: {int((size <= AIM).sum())} of {len(group)}, median error {size.median():.0%}")
    missed = outside[outside["error"].abs() > AIM]
    reach = int((missed["interval"] == "across").sum())
    noisy = f" The intervals of {reach} of the {len(missed)} others reach into that." if len(missed) else ""
    worst = outside.loc[outside["error"].abs().idxmax()]
    where = f"{worst['quantity']} at batch {worst['batch_size']}, {worst['num_tokens']} token(s)"
    if pd.notna(worst["measured_ms_low"]):
        where += f" ({worst['measured_ms_low']:.3g} to {worst['measured_ms_high']:.3g} ms measured)"
    return f"Within {AIM:.0%} out of sample - {'; '.join(parts)}.{noisy} Furthest off: {where}, {worst['error']:+.0%}."


def _interval(low: float, high: float) -> str | None:
    """How errors from `low` to `high` lie to the aim."""
    if np.isnan(low):
        return None
    return "beyond" if low > AIM or high < -AIM else "within" if max(-low, high) <= AIM else "across"


def _first(draft_is_head: bool, num_draft_tokens: int) -> int:
    """Tokens that a proposal first reads: a head all that the target verified, another draft two at most."""
    return num_draft_tokens + 1 if draft_is_head else 2


def _passes(model: FittedModel, costs: pd.DataFrame) -> Iterator[tuple[object, ...]]:
    """Passes of the target over 1 to 16 tokens, whatever the temperature."""
    target = costs[costs["model"] == "target"]
    for (batch, context, tokens), group in target.groupby(["batch_size", "context_tokens", "num_tokens"]):
        seconds = model.machine.pass_(model.target, batch, tokens, context)
        sample = _sample(model.in_sample(batch, context, tokens))
        kept = group["samples_ms"].dropna() if "samples_ms" in group else []
        interval = median_interval([ms for samples in kept for ms in samples])
        yield (
            "verification pass", None, batch, context, tokens, None, sample,
            group["ms"].median(), *interval, seconds * 1e3,
        )  # fmt: skip


def _lines(model: FittedModel, rows: pd.DataFrame) -> Iterator[tuple[object, ...]]:
    """TPOT of the baseline and of the pair's draft: measured as `metrics` averages it, and predicted.

    Every row has a prediction of its own, with its own acceptance; their ratios are averaged as the times are, so that
    where repetitions accept alike, the prediction owes nothing to what was measured.
    """
    ratios = [row["tpot_ms"] / (_tpot_ms(model, row) * model.slowdown) for _, row in rows.iterrows()]
    for key, group in rows.assign(ratio=ratios).groupby(metrics.LINE, dropna=False):
        line = dict(zip(metrics.LINE, key, strict=True))
        measured = _average(group, "tpot_ms")
        predicted = measured / _average(group, "ratio")
        low, high = median_interval(group["ratio"])
        tokens = 1 if line["method"] == metrics.BASELINE else int(line["num_draft_tokens"]) + 1
        seen = _fitted_setting(group.iloc[0]) and tokens in (1, model.num_draft_tokens + 1)
        context = round(sum(context_of(row) for _, row in group.iterrows()) / len(group))
        yield (
            "baseline TPOT" if tokens == 1 else "speculative TPOT", line["method"], line["batch_size"], context, tokens,
            line["temperature"], _sample(seen), measured, predicted * low, predicted * high, predicted,
        )  # fmt: skip


def _average(group: pd.DataFrame, column: str) -> float:
    """Median over the repetitions of a prompt, geometric mean over prompts."""
    return float(np.exp(np.log(group.groupby("prompt_group")[column].median().astype(float)).mean()))


def _timed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the library's baseline and of the pair's draft."""
    kept = metrics.undisturbed(rows)
    kept = kept[(kept["engine"] == metrics.OWN_ENGINE) & kept["method"].isin([metrics.BASELINE, "draft"])]
    return kept[kept["tpot_ms"].notna()]


def _fitted_setting(row: pd.Series) -> bool:
    """Batch 1 and prompts as they are."""
    return bool(row["batch_size"] == 1 and pd.isna(row["prompt_tokens"]))


def _tpot_ms(model: FittedModel, row: pd.Series) -> float:
    """Of one row, without the slowdown."""
    batch, context = int(row["batch_size"]), context_of(row)
    if row["method"] == metrics.BASELINE:
        passing = model.machine.pass_(model.target, batch, 1, context)
        return (passing + model.machine.sampling(model.target, batch, 1)) * 1e3
    gamma = int(row["num_draft_tokens"])
    passing = model.machine.pass_(model.target, batch, gamma + 1, context)
    rest = model.propose(batch, gamma, context) + model.machine.sampling(model.target, batch, gamma + 1)
    return (passing + rest) * 1e3 * passes_per_token(row)


def _sample(seen: bool) -> str:
    return "fit" if seen else "out of sample"
