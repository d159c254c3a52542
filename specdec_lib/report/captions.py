"""What a figure shows, in one sentence computed from its table. Plain text: escape it before it enters HTML."""

from __future__ import annotations

import numpy as np
import pandas as pd

from specdec_lib.analysis.cost import on_front
from specdec_lib.analysis.crossover import crossing
from specdec_lib.analysis.metrics import BASELINE, memory_column
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.report.figures.style import METHOD_NAMES
from specdec_lib.report.figures.sweep import GIB

NOTHING = "Nothing was measured here: see the failed cells."
_POINTS = {
    "num_draft_tokens": "γ = {}",
    "batch_size": "batch size {}",
    "prompt_tokens": "prompts of {} tokens",
    "max_new_tokens": "{} output tokens",
}


def finding_speedup(lines: pd.DataFrame, axis: str) -> str:
    """The best measured point along an axis at each temperature, and how many points do not pay."""
    methods = lines[(lines["method"] != BASELINE) & lines["speedup"].notna()]
    if methods.empty:
        return NOTHING
    best = [methods.loc[group["speedup"].idxmax()] for _, group in methods.groupby("temperature")]
    parts = [f"at T = {line.temperature:g} the {_where(line, axis)}, {with_interval(line)}" for line in best]
    slower = int((methods["speedup"] < 1).sum())
    count = f"Slower than autoregressive: {slower} of {len(methods)} points."
    return f"Fastest of the points shown: {'; '.join(parts)}. {count}"


def finding_gamma(lines: pd.DataFrame, predicted: pd.DataFrame) -> str:
    """The best gamma measured at each temperature, the one the formula would choose, and how far off it is at most.

    Args:
        lines: from `metrics.along(lines, params, "num_draft_tokens")`.
        predicted: from `prediction.predicted_speedups`.
    """
    known = predicted[predicted["speedup"].notna()]
    if known.empty:
        return finding_speedup(lines, "num_draft_tokens")
    keys = ["method", "temperature", "num_draft_tokens"]
    methods = lines[(lines["method"] != BASELINE) & lines["speedup"].notna()]
    both = methods.merge(known[[*keys, "speedup"]], how="left", on=keys, suffixes=("", "_predicted"))
    parts = []
    for temperature, group in both.groupby("temperature"):
        best = group.loc[group["speedup"].idxmax()]
        own = group[(group["method"] == best["method"]) & group["speedup_predicted"].notna()]
        parts.append(f"at T = {temperature:g} {_where(best, 'num_draft_tokens')}, {with_interval(best)}")
        if len(own):
            guess = own.loc[own["speedup_predicted"].idxmax()]
            same = guess["num_draft_tokens"] == best["num_draft_tokens"]
            other = f"would choose γ = {guess['num_draft_tokens']}, measured {guess['speedup']:.2f}×"
            parts.append(f"the formula {'chooses the same γ' if same else other}")
    off = (both["speedup_predicted"] / both["speedup"] - 1).abs().max()
    slower = int((both["speedup"] < 1).sum())
    count = f"{slower} of {len(both)} points are slower than autoregressive"
    return f"Best measured: {'; '.join(parts)}. Prediction and measurement differ by up to {off:.0%}; {count}."


def finding_crossover(lines: pd.DataFrame) -> str:
    """For each method and temperature the batch size at which speculation stops paying, or that there is none."""
    methods = lines[(lines["method"] != BASELINE) & lines["speedup"].notna()].sort_values("batch_size")
    if methods.empty:
        return NOTHING
    parts = []
    for method, curves in methods.groupby("method"):
        ends = [f"{_end_of(curve)} at T = {temperature:g}" for temperature, curve in curves.groupby("temperature")]
        parts.append(f"{METHOD_NAMES[method]} {', '.join(ends)}")
    groups = methods.groupby("batch_size")["num_prompts"].min()
    counts = ", ".join(f"{count} at batch {batch}" for batch, count in groups.items())
    return f"Where speculation stops paying: {'; '.join(parts)}. Prompt groups behind it, at least: {counts}."


def _end_of(curve: pd.DataFrame) -> str:
    """Where a speedup by rising batch size falls below 1, in words."""
    values, first, last = curve["batch_size"].to_numpy(float), curve.iloc[0], curve.iloc[-1]
    where = crossing(values, np.log(curve["speedup"].to_numpy(float)))
    if where == 0 and (curve["speedup"] >= 1).any():
        return "everywhere but at some larger batch"
    if where == 0:
        unclear = "" if first["speedup_high"] < 1 else f" (as far as can be said: {with_interval(first)})"
        return f"from batch {values[0]:.0f} on{unclear}"
    if where == np.inf:
        return f"not up to batch {values[-1]:.0f} ({with_interval(last)})"
    return (
        f"near batch {where:.2g}{'' if first['speedup_low'] > 1 else f' (if it pays at all: {with_interval(first)})'}"
    )


def finding_pareto(costs: pd.DataFrame) -> str:
    """Which settings no other beats in latency and cost at once, and how many of them speculate."""
    parts = []
    for temperature, group in costs.groupby("temperature"):
        front = group[on_front(group)].sort_values("tpot_ms")
        fastest, cheapest = front.iloc[0], front.iloc[-1]
        speculative = int((front["method"] != BASELINE).sum())
        ends = [
            f"{METHOD_NAMES[line['method']]} at batch {line['batch_size']} with {line['tpot_ms']:.3g} ms and "
            f"${line['usd_per_million_tokens']:#.3g}"
            for line in (fastest, cheapest)
        ]
        between = ends[0] if len(front) == 1 else f"from {ends[0]} to {ends[1]}"
        parts.append(f"at T = {temperature:g} {between}, {speculative} of its {len(front)} setting(s) speculative")
    return f"The front: {'; '.join(parts)}." if parts else NOTHING


def finding_arrivals(result: DecodeResult, baseline: DecodeResult) -> str:
    """Tokens per second of one call with speculation against one without, and the largest jump."""
    ratio = result.tokens_per_second / baseline.tokens_per_second
    most = max((step[0] for step in result.step_tokens), default=1)
    speeds = (
        f"{result.tokens_per_second:.1f} tokens per second with speculation, {baseline.tokens_per_second:.1f} without"
    )
    return f"{speeds}: {ratio:.2f}× in this one call; the largest step brought {most} token(s)."


def finding_headline(headline: pd.DataFrame) -> str:
    """The speedup of every method at the gamma that the params fixed before measuring."""
    methods = headline[(headline["method"] != BASELINE) & headline["speedup"].notna()]
    if methods.empty:
        return NOTHING
    parts = [
        f"{METHOD_NAMES[line.method]} at T = {line.temperature:g}, {with_interval(line)}"
        for line in methods.itertuples()
    ]
    counts = sorted(set(methods["num_prompts"]))
    prompts = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"With γ = {methods['num_draft_tokens'].iloc[0]}, paired over {prompts} prompt group(s): {'; '.join(parts)}."


def finding_tpot(lines: pd.DataFrame, axis: str = "batch_size") -> str:
    """Which method takes the least time per token at the first and at the last value of an axis."""
    parts = []
    for temperature, group in lines[lines["tpot_ms"].notna()].groupby("temperature"):
        values = group[axis].fillna(0).astype(int)
        for value in sorted({values.min(), values.max()}):
            here = group[values == value]
            fastest = here.loc[here["tpot_ms"].idxmin()]
            baseline = here.loc[here["method"] == BASELINE, "tpot_ms"]
            against = f" against {baseline.iloc[0]:.3g} ms" if len(baseline) and fastest.method != BASELINE else ""
            parts.append(f"at T = {temperature:g} {_where(fastest, axis)}, {fastest.tpot_ms:.3g} ms{against}")
    return f"Least time per token: {'; '.join(parts)}." if parts else NOTHING


def finding_memory(lines: pd.DataFrame, axis: str = "batch_size") -> str:
    """Peak memory of every method at the last value of an axis."""
    values = lines[axis].fillna(0).astype(int)
    column = memory_column(lines)
    here = lines[(values == values.max()) & lines[column].notna()]
    if here.empty:
        return NOTHING
    peaks = pd.to_numeric(here[column]).groupby(here["method"]).max() / GIB
    parts = [f"{METHOD_NAMES[method]} {peak:.2f} GiB" for method, peak in peaks.items()]
    return f"Peak memory with {_point(here.iloc[0], axis)}: {', '.join(parts)}."


def finding_acceptance(positions: pd.DataFrame) -> str:
    """Acceptance at the first position and at the last that was tested."""
    parts = []
    for (method, temperature), curve in positions[positions["tested"] > 0].groupby(["method", "temperature"]):
        curve = curve.sort_values("position")
        first, last = curve.iloc[0], curve.iloc[-1]
        rates = f"{first['acceptance_rate']:.2f} at position 1 and {last['acceptance_rate']:.2f} at {last['position']}"
        parts.append(f"{METHOD_NAMES[method]} at T = {temperature:g}, {rates}")
    return f"Accepted, if all before were: {'; '.join(parts)}." if parts else NOTHING


def finding_token_gaps(gaps: pd.DataFrame) -> str:
    """How bursty speculation is: tokens without a wait, and the long waits against those of the baseline."""
    parts = []
    for temperature, group in gaps.groupby("temperature"):
        without = group.loc[group["method"] == BASELINE, "gap_ms"].quantile(0.99)
        shares = (group["gap_ms"] == 0).groupby(group["method"]).mean().drop(BASELINE, errors="ignore")
        if shares.empty:
            continue
        method = shares.idxmax()
        wait = group.loc[group["method"] == method, "gap_ms"].quantile(0.99)
        against = f", against {without:.3g} ms without speculation" if without > 0 else ""
        bursts = f"{shares.max():.0%} of tokens come without a wait and 1 in 100 after {wait:.3g} ms or more"
        parts.append(f"with the {METHOD_NAMES[method]} at T = {temperature:g}, {bursts}{against}")
    return f"Speculation is bursty: {'; '.join(parts)}." if parts else NOTHING


def finding_cost(costs: pd.DataFrame) -> str:
    """The cheapest method at each temperature, and the price ratio that it can bear."""
    parts = []
    for temperature, group in costs.groupby("temperature"):
        cheapest = group.loc[group["usd_per_million_tokens"].idxmin()]
        text = f"at T = {temperature:g} {METHOD_NAMES[cheapest.method]}, ${cheapest.usd_per_million_tokens:#.3g}"
        baseline = group.loc[group["method"] == BASELINE, "usd_per_million_tokens"]
        if cheapest.method != BASELINE and len(baseline):
            ratio = f"worth up to {cheapest.break_even_price_ratio:.2f} times the hourly price"
            text += f" against ${baseline.iloc[0]:#.3g} without speculation, {ratio}"
        parts.append(text)
    return f"Cheapest per million tokens: {'; '.join(parts)}." if parts else NOTHING


def finding_transformers(lines: pd.DataFrame) -> str:
    """The library's own baseline, and its best speculative method, against autoregressive `transformers.generate`."""
    parts = []
    for temperature, group in lines[lines["engine"] != "transformers"].groupby("temperature"):
        baseline, methods = group[group["method"] == BASELINE], group[group["method"] != BASELINE]
        texts = [f"autoregressive here, {with_interval(line)}" for line in baseline.itertuples()]
        if len(methods):
            best = methods.loc[methods["speedup"].idxmax()]
            texts.append(f"best speculative, {_where(best, 'num_draft_tokens')}, {with_interval(best)}")
        parts.append(f"at T = {temperature:g} {'; '.join(texts)}")
    if not parts:
        return "transformers.generate was not timed in this run."
    return f"Over transformers.generate without speculation: {'; '.join(parts)}."


def with_interval(line: pd.Series) -> str:
    """A speedup as text, with its interval where there is one."""
    if pd.isna(line.speedup):
        return "not measured"
    if pd.isna(line.speedup_low):
        return f"{line.speedup:.2f}× (no interval)"
    return f"{line.speedup:.2f}× (95 % interval {line.speedup_low:.2f} to {line.speedup_high:.2f})"


def _where(line: pd.Series, axis: str) -> str:
    return f"{METHOD_NAMES[line.method]} with {_point(line, axis)}"


def _point(line: pd.Series, axis: str) -> str:
    return "natural prompts" if pd.isna(line[axis]) else _POINTS[axis].format(line[axis])
