"""The cost model of the machine at hand, and how wrong it is there, point by point.

It is fitted to batch 1, one context and decoding with one gamma; every other point is out of sample of the fit. Its
form was made while looking at runs of the embedded pair on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from specdec_lib.analysis import metrics
from specdec_lib.analysis.cost_model.machine import Machine, MatrixSeconds
from specdec_lib.analysis.statistics import mean_over_prompts, median_interval
from specdec_lib.analysis.step_table import StepTable, read_step_costs, why_unused
from specdec_lib.analysis.waterfall import context_of, passes_per_token
from specdec_lib.hardware.costs import BYTES
from specdec_lib.machine.calibration_file import Calibration, read_calibration
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.models.shape import ModelShape

if TYPE_CHECKING:
    from specdec_lib.analysis.comparison import Run

AIM = 0.15
DRAFT = "draft"  # the method, and the piece of a step, whose costs the model predicts
COLUMNS = ["quantity", "method", "batch_size", "context_tokens", "num_tokens", "temperature", "sample"]
COLUMNS += ["measured_ms", "measured_ms_low", "measured_ms_high", "predicted_ms"]


class CalibrationErrors(NamedTuple):
    """What the cost model gets wrong on a run's machine."""

    table: pd.DataFrame  # from `error_table`; empty if there is no model
    num_draft_tokens: int | None = None  # the gamma that the model was fitted with
    why_missing: str = ""  # why there is no model, if so


@dataclass(frozen=True)
class FittedModel:
    """The cost model of a machine with its pair, and the one gamma that it was fitted with."""

    machine: Machine
    pair: Calibration  # what it says of target and draft
    num_draft_tokens: int
    context: int
    slowdown: float = 1.0  # of whole calls over their pieces timed alone: interruptions, and drift

    def propose(self, batch: int, num_draft_tokens: int, context: float) -> float:
        """Seconds of a proposal. It first reads two tokens at most; a head all that the target verified."""
        first = num_draft_tokens + 1 if self.pair.draft_is_head else 2
        return self.machine.propose(self.pair.draft, batch, num_draft_tokens, context, first)

    def tpot_ms(self, row: pd.Series) -> float:
        """Of one row of the results table, with its own acceptance and without the slowdown."""
        batch, context, target = int(row["batch_size"]), context_of(row), self.pair.target
        gamma = 0 if row["method"] == AUTOREGRESSIVE else int(row["num_draft_tokens"])
        seconds = self.machine.pass_(target, batch, gamma + 1, context)
        seconds += self.machine.sampling(target, batch, gamma + 1)
        if gamma:
            seconds = (seconds + self.propose(batch, gamma, context)) * passes_per_token(row)
        return 1e3 * seconds

    def sample(self, fitted_place: bool, num_tokens: int) -> str:
        """Whether the fit saw a pass of this many tokens at a place, for readers."""
        return "fit" if fitted_place and num_tokens in (1, self.num_draft_tokens + 1) else "out of sample"


def calibrated_errors(run: Run) -> CalibrationErrors:
    """The errors of a run, from the files in its folder; fitted with the largest gamma of the params that was timed."""
    nothing = pd.DataFrame(columns=[*COLUMNS, "error"])
    if (spread := run.params.tensor_parallel) > 1:
        return CalibrationErrors(nothing, why_missing=f"the cost model knows of one device, not of {spread}")
    try:
        calibration, costs = read_calibration(run.folder), read_step_costs(run.folder)
        timed = set(costs.loc[costs["model"] == DRAFT, "num_tokens"])
        if not timed:
            raise ValueError("the costs of a step were not measured")
        gamma = max((gamma for gamma in run.params.num_draft_tokens if gamma in timed), default=max(timed))
        model = fit(calibration, costs, run.rows, gamma)
    except ValueError as error:
        return CalibrationErrors(nothing, why_missing=str(error))
    return CalibrationErrors(error_table(model, costs, run.rows), gamma)


def fit(calibration: Calibration, costs: pd.DataFrame, rows: pd.DataFrame, num_draft_tokens: int) -> FittedModel:
    """Fit the engine's overhead at batch 1, the shortest context and one gamma.

    The baseline's whole calls at batch 1 say how much longer these take than their pieces.

    Raises:
        ValueError: the costs lack batch 1 or that gamma, or `step_table.why_unused` rejects costs or calibration.
    """
    for timed in (costs, costs.head(1).assign(replayed=calibration.replayed)):
        if reason := why_unused(timed, rows):
            raise ValueError(reason)
    table, context = StepTable(costs), int(costs["context_tokens"].min())
    if np.isnan(table.ms(DRAFT, 1, context, num_draft_tokens)):
        raise ValueError(f"no step cost at batch 1 with gamma {num_draft_tokens}: measure it, or fit another gamma")
    model = FittedModel(calibrated_machine(calibration), calibration, num_draft_tokens, context)
    model = replace(model, machine=_with_overhead(model, lambda piece, tokens: table.ms(piece, 1, context, tokens)))
    seen = [r for _, r in _timed(rows).iterrows() if r["method"] == AUTOREGRESSIVE and _fitted_setting(r)]
    ratios = [row["tpot_ms"] / model.tpot_ms(row) for row in seen]
    return replace(model, slowdown=float(np.median(ratios))) if ratios else model


def error_table(model: FittedModel, costs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Measured against predicted milliseconds: verification cost, baseline TPOT, and TPOT with the pair's draft.

    Acceptance is taken as measured, row by row: the model predicts time, not text. `measured_ms_low` and `_high` are a
    95 % interval of the median over the times of a piece, or over the rows of a line; NaN where these were not kept.
    """
    table = pd.DataFrame([*_passes(model, costs), *_lines(model, _timed(rows))], columns=COLUMNS)
    return table.assign(error=table["predicted_ms"] / table["measured_ms"] - 1)


def calibrated_machine(calibration: Calibration) -> Machine:
    """The machine that was measured, before anything of the engine's own overhead is fitted."""
    rows, again = calibration.matrix_rows, calibration.draft_seconds_per_weight
    matrix_seconds, last_slope = _from_table(rows, calibration.matrix_seconds_per_weight)
    return Machine(
        name=calibration.device_name,
        matrix_seconds=matrix_seconds,
        draft_matrix_seconds=_from_table(rows, again)[0] if again else None,
        draft_bytes=(calibration.draft_bytes_per_weight or BYTES[calibration.dtype]) / BYTES[calibration.dtype],
        read_bytes_per_second=calibration.read_bytes_per_second,
        operations_per_second=2 / last_slope,
        bytes_per_number=max(BYTES[calibration.dtype], BYTES["bfloat16"]),  # keys and values are never in 8 bits
    )


def _from_table(rows: Sequence[int], seconds_per_weight: Sequence[float]) -> tuple[MatrixSeconds, float]:
    """The time of all products of a pass from a measured table, and seconds per weight for each row beyond it.

    A product of fewer rows never costs more than one of more rows: what was measured so is noise, and is cut.
    """
    per_weight = np.minimum.accumulate(np.array(seconds_per_weight)[::-1])[::-1]
    slope = max(float((per_weight[-1] - per_weight[-2]) / (rows[-1] - rows[-2])), 1e-18)

    def matrix_seconds(shape: ModelShape, count: int) -> float:
        beyond = max(count - rows[-1], 0) * slope
        return float(np.interp(count, rows, per_weight) + beyond) * shape.weights_multiplied()

    return matrix_seconds, slope


def _with_overhead(model: FittedModel, milliseconds: Callable[[str, int], float]) -> Machine:
    """The machine with what the engine adds to the five pieces of a step, from batch 1, one context and one gamma.

    What it adds to passes may be negative: an engine that computes a whole pass at once is spared the starts that the
    products of the calibration have paid for one by one.

    Args:
        milliseconds: measured cost by piece ("target", "draft", "sampling") and number of tokens, at batch 1.
    """
    machine, target = model.machine, model.pair.target
    gamma, verified = model.num_draft_tokens, model.num_draft_tokens + 1

    def added(piece: str, tokens: int, predicted: float) -> float:
        return milliseconds(piece, tokens) / 1e3 - predicted

    return replace(
        machine,
        decode_pass_seconds=added("target", 1, machine.pass_(target, 1, 1, model.context)),
        verify_pass_seconds=added("target", verified, machine.pass_(target, 1, verified, model.context)),
        verify_tokens=verified,
        draft_pass_seconds=added(DRAFT, gamma, model.propose(1, gamma, model.context)) / verified,
        choose_seconds=added("sampling", 1, machine.sampling(target, 1, 1)),
        verify_seconds=added("sampling", verified, machine.sampling(target, 1, verified)),
    )


def _passes(model: FittedModel, costs: pd.DataFrame) -> Iterator[tuple[object, ...]]:
    """Passes of the target over 1 to 16 tokens, whatever the temperature."""
    target = costs[costs["model"] == "target"]
    for (batch, context, tokens), group in target.groupby(["batch_size", "context_tokens", "num_tokens"]):
        seconds = model.machine.pass_(model.pair.target, batch, tokens, context)
        sample = model.sample(batch == 1 and context == model.context, tokens)
        kept = group["samples_ms"].dropna() if "samples_ms" in group else []
        interval = median_interval([ms for samples in kept for ms in samples])
        facts = ("verification pass", None, batch, context, tokens, None, sample)
        yield *facts, group["ms"].median(), *interval, seconds * 1e3


def _lines(model: FittedModel, rows: pd.DataFrame) -> Iterator[tuple[object, ...]]:
    """TPOT of the baseline and of the pair's draft: measured as `metrics` averages it, and predicted.

    Ratios are averaged as times are: where repetitions accept alike, the prediction does not depend on measured times.
    """
    ratios = [row["tpot_ms"] / (model.tpot_ms(row) * model.slowdown) for _, row in rows.iterrows()]
    for key, group in rows.assign(ratio=ratios).groupby(metrics.LINE, dropna=False):
        line = dict(zip(metrics.LINE, key, strict=True))
        measured = mean_over_prompts(group, "tpot_ms")
        predicted = measured / mean_over_prompts(group, "ratio")
        low, high = median_interval(group["ratio"])
        tokens = 1 if line["method"] == AUTOREGRESSIVE else int(line["num_draft_tokens"]) + 1
        context = round(sum(context_of(row) for _, row in group.iterrows()) / len(group))
        quantity = "baseline TPOT" if tokens == 1 else "speculative TPOT"
        sample = model.sample(_fitted_setting(group.iloc[0]), tokens)
        facts = (quantity, line["method"], line["batch_size"], context, tokens, line["temperature"], sample)
        yield *facts, measured, predicted * low, predicted * high, predicted


def _timed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the library's baseline and of the pair's draft."""
    kept = metrics.undisturbed(rows)
    kept = kept[(kept["engine"] == metrics.OWN_ENGINE) & kept["method"].isin([AUTOREGRESSIVE, DRAFT])]
    return kept[kept["tpot_ms"].notna()]


def _fitted_setting(row: pd.Series) -> bool:
    """Batch 1 and natural prompts."""
    return bool(row["batch_size"] == 1 and pd.isna(row["prompt_tokens"]))
