"""What the figures and tables of the latency study show, in one or two sentences computed from their table."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pandas as pd

from specdec_lib.analysis import crossover
from specdec_lib.analysis.metrics import memory_column
from specdec_lib.analysis.waterfall import COSTS, STAGES
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


def finding_headline(headline: pd.DataFrame) -> str:
    """The fastest method at the headline gamma, and how many lines are faster than the baseline."""
    methods = _speculative(headline)
    if methods.empty:
        return NOTHING
    best = methods.loc[methods["speedup"].idxmax()]
    prompts = span(methods["num_prompts"], "{}")
    faster = int((methods["speedup"] > 1).sum())
    return (
        f"Fastest: {setting(best)}, {with_interval(best)}, paired over {prompts} prompt groups. "
        f"Of {len(methods)} speculative lines, {faster} are faster than autoregressive decoding."
    )


def finding_speedup(lines: pd.DataFrame, axis: str) -> str:
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
    measured, keys = finding_speedup(lines, "num_draft_tokens"), ["method", "temperature", "num_draft_tokens"]
    methods, known = _speculative(lines), predicted[predicted["speedup"].notna()][[*keys, "speedup"]]
    if methods.empty or known.empty:
        return measured
    both = methods.merge(known, on=keys, suffixes=("", "_predicted"))
    best = both.loc[both["speedup"].idxmax()]
    own = both[(both["method"] == best["method"]) & (both["temperature"] == best["temperature"])]
    chosen = own.loc[own["speedup_predicted"].idxmax()]
    off = (both["speedup_predicted"] / both["speedup"] - 1).abs().max()
    same = chosen["num_draft_tokens"] == best["num_draft_tokens"]
    choice = "the same γ" if same else f"γ = {chosen['num_draft_tokens']}, measured {chosen['speedup']:.2f}×"
    return f"{measured} The formula chooses {choice} there, and is off by up to {off:.0%} over all points."


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
    """The least time per token, with speculation and without."""
    timed = lines[lines["tpot_ms"].notna()]
    if timed.empty:
        return NOTHING
    fastest = timed.loc[timed["tpot_ms"].idxmin()]
    baseline = timed.loc[timed["method"] == AUTOREGRESSIVE, "tpot_ms"].min()
    text = f"Least time per token: {setting(fastest, axis)}, {fastest['tpot_ms']:.3g} ms."
    if fastest["method"] == AUTOREGRESSIVE or pd.isna(baseline):
        return text
    return f"{text} Without speculation it is {baseline:.3g} ms."


def finding_memory(lines: pd.DataFrame, axis: str = "batch_size") -> str:
    """Peak memory of every method at the last value of an axis."""
    column, values = memory_column(lines), lines[axis].fillna(0).astype(int)
    here = lines[(values == values.max()) & lines[column].notna()]
    if here.empty:
        return NOTHING
    peaks = pd.to_numeric(here[column]).groupby(here["method"]).max() / GIB
    parts = [f"{label(method)} {peak:.2f} GiB" for method, peak in peaks.items()]
    return f"Peak memory at the largest value shown: {', '.join(parts)}."


def finding_acceptance(positions: pd.DataFrame) -> str:
    """Acceptance at the first position and at the last that was tested."""
    tested = positions[positions["tested"] > 0].sort_values("position").groupby(["method", "temperature"])
    if not len(tested):
        return "No draft token was tested here."
    first, last = tested["acceptance_rate"].first(), tested["acceptance_rate"].last()
    return (
        f"If all drafts before it were accepted, a draft token is accepted with probability {span(first)} at the first "
        f"position, and {span(last)} at the last."
    )


def finding_token_gaps(gaps: pd.DataFrame) -> str:
    """How bursty the most bursty method is: tokens without a wait, and its long waits against the baseline's."""
    drafted = gaps[gaps["method"] != AUTOREGRESSIVE]
    if drafted.empty:
        return NOTHING
    shares = drafted["gap_ms"].eq(0).groupby([drafted["method"], drafted["temperature"]]).mean()
    method, temperature = shares.idxmax()
    here = gaps[gaps["temperature"] == temperature]
    waits = here.groupby("method")["gap_ms"].quantile(0.99)
    against = f", against {waits[AUTOREGRESSIVE]:.3g} ms without speculation" if AUTOREGRESSIVE in waits else ""
    return (
        f"With the {label(method)} at T = {temperature:g}, {shares.max():.0%} of tokens come without a wait. "
        f"One wait in 100 is {waits[method]:.3g} ms or longer{against}."
    )


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
    """Tokens per second of one call with speculation against one without, and the largest jump."""
    ratio = result.tokens_per_second / baseline.tokens_per_second
    most = max((step[0] for step in result.step_tokens), default=1)
    return (
        f"This one call gave {result.tokens_per_second:.1f} tokens per second with speculation and "
        f"{baseline.tokens_per_second:.1f} without: {ratio:.2f}×. Its largest step brought {most} token(s)."
    )


def finding_waterfall(stages: pd.DataFrame) -> str:
    """How much of the measured speedups the measured costs leave unexplained, and which cost takes most."""
    known = stages[stages["unexplained"].notna()]
    if known.empty:
        notes = stages["note"].dropna()
        return NO_COSTS if notes.empty else notes.iloc[0]
    size = known["unexplained"].abs()
    losses = pd.Series({STAGES[b]: (1 - known[b] / known[a]).mean() for a, b in itertools.pairwise(COSTS)})
    return (
        f"Measured costs leave {size.median():.0%} of the speedup unexplained at the median line and {size.max():.0%} "
        f"at the worst. The {losses.idxmax()} takes most: {losses.max():.0%} on average."
    )


def finding_verification(lines: pd.DataFrame) -> str:
    """v at the most tokens and the range of c; from `step_table.verification_costs`."""
    lines = lines[lines["verification_cost"].notna()]
    if lines.empty:
        return NO_COSTS
    last = lines[lines["num_tokens"] == lines["num_tokens"].max()]
    text = f"A pass over {last['num_tokens'].max()} tokens takes {span(last['verification_cost'])} passes over one."
    ratios = lines["cost_ratio"].dropna()
    return f"{text} Drafting a token takes {span(ratios)} of one." if len(ratios) else text


def _speculative(lines: pd.DataFrame) -> pd.DataFrame:
    return lines[(lines["method"] != AUTOREGRESSIVE) & lines["speedup"].notna()]
