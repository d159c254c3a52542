"""What the figures and tables of the latency study show, computed from their table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from specdec_lib.analysis import crossover
from specdec_lib.analysis.metrics import memory_column
from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import GIB, NOTHING, setting, span, with_interval

if TYPE_CHECKING:
    from specdec_lib.decoding.result import DecodeResult

NO_COSTS = "The costs of the pieces of a step were not measured here."
_OUTCOMES = {
    crossover.CROSSES: "stops paying within the batch sizes tried",
    crossover.ALWAYS: "pays at every batch size tried",
    crossover.NEVER: "pays at none of them",
    crossover.LATER: "pays at a larger one only",
}


def finding_speedup(lines: pd.DataFrame, axis: str = "num_draft_tokens") -> str:
    """The best measured point along an axis, and how many points do not pay."""
    methods = _speculative(lines)
    if methods.empty:
        return NOTHING
    best = methods.loc[methods["speedup"].idxmax()]
    slower = int((methods["speedup"] < 1).sum())
    return (
        f"Fastest: {setting(best, axis)}, {with_interval(best)}. "
        f"Slower than autoregressive decoding: {slower} of {len(methods)} points."
    )


def finding_gamma(lines: pd.DataFrame, predicted: pd.DataFrame) -> str:
    """The best gamma measured, the one that the formula would choose there, and the formula's largest error.

    Args:
        lines: from `headline.along(lines, params, "num_draft_tokens")`.
        predicted: from `prediction.predicted_speedups`.
    """
    measured, keys = finding_speedup(lines), ["method", "temperature", "num_draft_tokens"]
    known = predicted.loc[predicted["speedup"].notna(), [*keys, "speedup"]]
    both = _speculative(lines).merge(known, on=keys, suffixes=("", "_predicted"))
    if both.empty:
        return measured
    best = both.loc[both["speedup"].idxmax()]
    own = both[(both["method"] == best["method"]) & (both["temperature"] == best["temperature"])]
    chosen = own.loc[own["speedup_predicted"].idxmax(), "num_draft_tokens"]
    off = (both["speedup_predicted"] / both["speedup"] - 1).abs().max()
    return f"{measured} The formula chooses γ = {chosen} there, and is off by up to {off:.0%} over all points."


def finding_crossover(crossovers: pd.DataFrame) -> str:
    """In how many settings speculation stops paying within the batch sizes tried; from `analysis.crossover`."""
    if crossovers.empty:
        return "No setting was measured at two batch sizes, so no crossover can be read."
    sentences = []
    for evidence, group in crossovers.groupby("evidence"):
        counts = group["outcome"].value_counts()
        parts = [f"{words} in {counts[outcome]}" for outcome, words in _OUTCOMES.items() if outcome in counts]
        sentences.append(f"Of {len(group)} {evidence} settings, speculation {', '.join(parts)}.")
    return " ".join(sentences)


def finding_batches(gains: pd.DataFrame) -> str:
    """How many times the throughput the largest batch gives without speculation; from `batching.batch_gains`."""
    baseline = gains[gains["method"] == AUTOREGRESSIVE]
    sizes = baseline["batch_size"]
    if sizes.nunique() < 2:
        return "Without speculation fewer than two batch sizes were measured."
    last = baseline[sizes == sizes.max()]
    return (
        f"Without speculation, batch {sizes.max()} decodes {span(last['decoding_gain'])} times the tokens per second "
        f"of batch {sizes.min()}. Over whole calls it is {span(last['call_gain'])} times, as reading prompts takes "
        f"{span(last['prefill_share'], '{:.0%}')} of a call."
    )


def finding_tpot(lines: pd.DataFrame, axis: str = "batch_size") -> str:
    """The least time per token."""
    timed = lines[lines["tpot_ms"].notna()]
    if timed.empty:
        return NOTHING
    fastest = timed.loc[timed["tpot_ms"].idxmin()]
    return f"Least time per token: {setting(fastest, axis)}, {fastest['tpot_ms']:.3g} ms."


def finding_memory(lines: pd.DataFrame) -> str:
    """Peak memory of every method over all lines."""
    peaks = (pd.to_numeric(lines[memory_column(lines)]).groupby(lines["method"]).max() / GIB).dropna()
    listed = ", ".join(f"{label(method)} {peak:.2f} GiB" for method, peak in peaks.items())
    return f"Peak memory: {listed}." if listed else NOTHING


def finding_acceptance(positions: pd.DataFrame) -> str:
    """Acceptance at the first position and at the last that was tested."""
    tested = positions[positions["tested"] > 0].sort_values("position").groupby(["method", "temperature"])
    if not len(tested):
        return "No draft token was tested here."
    first, last = tested["acceptance_rate"].first(), tested["acceptance_rate"].last()
    return f"A token is accepted with probability {span(first)} at the first position and {span(last)} at the last."


def finding_token_gaps(gaps: pd.DataFrame) -> str:
    """The share of tokens without a wait, of the method that has most of them."""
    drafted = gaps[gaps["method"] != AUTOREGRESSIVE]
    if drafted.empty:
        return NOTHING
    shares = drafted["gap_ms"].eq(0).groupby([drafted["method"], drafted["temperature"]]).mean()
    method, temperature = shares.idxmax()
    return f"With the {label(method)} at T = {temperature:g}, {shares.max():.0%} of tokens come without a wait."


def finding_transformers(lines: pd.DataFrame) -> str:
    """The library's own baseline, and its best speculative line, against autoregressive `transformers.generate`."""
    ours = lines[(lines["engine"] != "transformers") & lines["speedup"].notna()]
    baseline, methods = ours[ours["method"] == AUTOREGRESSIVE], _speculative(ours)
    if ours.empty:
        return "transformers.generate was not timed in this run."
    sentences = []
    if len(baseline):
        sentences.append(f"Autoregressive decoding here is {span(baseline['speedup'])}× transformers.generate.")
    if len(methods):
        best = methods.loc[methods["speedup"].idxmax()]
        sentences.append(f"The best over transformers.generate is {setting(best)}, {with_interval(best)}.")
    return " ".join(sentences)


def finding_arrivals(result: DecodeResult, baseline: DecodeResult) -> str:
    """Tokens per second of one call with speculation against one without."""
    ours, theirs = result.tokens_per_second, baseline.tokens_per_second
    return f"{ours:.1f} tokens per second with speculation, {theirs:.1f} without: {ours / theirs:.2f}×."


def finding_waterfall(stages: pd.DataFrame) -> str:
    """How much of the measured speedups the measured costs leave unexplained."""
    size = stages["unexplained"].dropna().abs()
    if size.empty:
        return next(iter(stages["note"].dropna()), NO_COSTS)
    return f"Unexplained by measured costs: {size.median():.0%} at the median line, {size.max():.0%} at the worst."


def finding_verification(lines: pd.DataFrame) -> str:
    """v at the most tokens; from `step_table.verification_costs`."""
    if lines.empty:
        return NO_COSTS
    last = lines[lines["num_tokens"] == lines["num_tokens"].max()]
    return f"A pass over {last['num_tokens'].max()} tokens takes {span(last['verification_cost'])} passes over one."


def _speculative(lines: pd.DataFrame) -> pd.DataFrame:
    return lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna()]
