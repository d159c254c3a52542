"""What the figures and tables of the latency study show, computed from their table."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.sweep import crossover
from specdec_lib.analysis.sweep.stops import PARTS
from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import NOTHING, setting, span, with_interval

NO_COSTS = "The costs of the pieces of a step were not measured here."
_OUTCOMES = {
    crossover.CROSSES: "stops paying within the batch sizes tried",
    crossover.ALWAYS: "pays at every batch size tried",
    crossover.NEVER: "pays at none of them",
    crossover.LATER: "pays at a larger one only",
}
MOST_LISTED = 8  # crossovers in a sentence


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
    if known.empty:
        return measured
    both = _speculative(lines).merge(known, on=keys, suffixes=("", "_predicted"))
    best = both.loc[both["speedup"].idxmax()]
    own = both[(both["method"] == best["method"]) & (both["temperature"] == best["temperature"])]
    chosen = own.loc[own["speedup_predicted"].idxmax(), "num_draft_tokens"]
    off = (both["speedup_predicted"] / both["speedup"] - 1).abs().max()
    return f"{measured} The formula chooses γ = {chosen} there, and is off by up to {off:.0%} over all points."


def finding_crossover(crossovers: pd.DataFrame) -> str:
    """In how many settings speculation stops paying within the batch sizes tried; from `analysis.sweep.crossover`."""
    if crossovers.empty:
        return "No setting was measured at two batch sizes, so no crossover can be read."
    sentences = []
    for evidence, group in crossovers.groupby("evidence"):
        counts = group["outcome"].value_counts()
        parts = [f"{words} in {counts[outcome]}" for outcome, words in _OUTCOMES.items() if outcome in counts]
        sentences.append(f"Of {len(group)} {evidence} settings, speculation {', '.join(parts)}.")
        crossing = group[group["outcome"] == "crosses"]
        if 0 < len(crossing) <= MOST_LISTED:
            ends = [
                f"{line.crossover_batch:.1f} ({label(line.method)}, T = {line.temperature:g})"
                for line in crossing.itertuples()
            ]
            sentences.append(f"It stops near batch {', '.join(ends)}.")
    return " ".join(sentences)


def finding_batches(gains: pd.DataFrame) -> str:
    """How many times the throughput the largest batch gives without speculation; from `batching.batch_gains`."""
    baseline = gains[gains["method"] == AUTOREGRESSIVE]
    sizes = baseline["batch_size"]
    if sizes.nunique() < 2:
        return "Without speculation fewer than two batch sizes were measured."
    last = baseline[sizes == sizes.max()]
    calls, reading = span(last["call_gain"]), span(last["prefill_share"], "{:.0%}")
    share = f"as reading prompts takes {reading} of a call"
    if last["decoding_gain"].isna().all():  # one output token
        return (
            f"Without speculation, whole calls of batch {sizes.max()} yield {calls} times the tokens per second of "
            f"batch {sizes.min()}, {share}."
        )
    return (
        f"Without speculation, batch {sizes.max()} decodes {span(last['decoding_gain'])} times the tokens per second "
        f"of batch {sizes.min()}. Over whole calls it is {calls} times, {share}."
    )


def finding_stops(lines: pd.DataFrame) -> str:
    """How much of the output lies after a text's own stop, and what that does; from `stops.stop_lines`."""
    if lines.empty:
        return "No text ran on after a stop token of its own, or this was not measured here."
    most = int(lines["num_prompts"].max())
    after = lines[lines["part"] == PARTS["past_stop"]]
    drafted = lines[lines["num_draft_tokens"].notna()].dropna(subset=["acceptance_rate"])
    share = span(after["tokens_share"], "{:.0%}")
    said = [f"Up to {most} prompts reached a stop and ran on after it, for {share} of their tokens."]
    for temperature, here in drafted.groupby("temperature"):
        rates = here.pivot_table("acceptance_rate", "method", "part", observed=True).dropna()
        changes = [
            f"{row[PARTS['to_stop']]:.2f} up to the stop and {row[PARTS['past_stop']]:.2f} after it ({label(method)})"
            for method, row in rates.iterrows()
            if set(PARTS.values()) <= set(rates.columns)
        ]
        if changes:
            said.append(f"Acceptance at T = {temperature:g}: {', '.join(changes)}.")
    return " ".join(said)


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


def finding_waterfall(stages: pd.DataFrame) -> str:
    """How much of the measured speedups the measured costs leave unexplained."""
    size = stages["unexplained"].dropna().abs()
    if size.empty:
        return next(iter(stages["note"].dropna()), NO_COSTS)
    low, high = stages["unexplained"].min(), stages["unexplained"].max()
    return (
        f"Of the speedups shown, measured costs leave {low:+.0%} to {high:+.0%} unexplained, {size.median():.0%} at "
        "the median. Each step replaces an assumption by a measurement, so that it may also raise the prediction."
    )


def _speculative(lines: pd.DataFrame) -> pd.DataFrame:
    return lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna()]
