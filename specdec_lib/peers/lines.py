"""The rows of a comparison as lines for readers: time per token of every way, and its ratios with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from specdec_lib.analysis.statistics import Estimate, geometric_mean
from specdec_lib.methods import AUTOREGRESSIVE, METHODS, label
from specdec_lib.peers.rows import OURS, TRANSFORMERS

WAY = ["engine", "method", "pair", "draft_id", "num_draft_tokens"]
RATIOS = {  # the time per token of every way over that of an engine without speculation
    "over_baseline": (OURS, "/ our baseline"),
    "over_transformers": (TRANSFORMERS, "/ transformers generate"),
}
HEADINGS = {"tpot_ms": "TPOT (ms)"} | {name: heading for name, (_, heading) in RATIOS.items()}


def peer_lines(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One line per way and temperature: time per token, and its ratios to our baseline and to transformers' generate.

    From the rows of `rows.read_peers`. A way that did not decode every prompt has no line.

    Returns:
        Columns `WAY`, `engine_version`, `temperature`, `prompts`; `tpot_ms` (milliseconds, geometric mean over prompts
        of medians over repetitions) and each of `RATIOS`, with their 95 % intervals (`_low`, `_high`); `evidence`; and
        `same_tokens`, the share of a greedy output up to its first difference from our baseline's (null if sampled).
    """
    good = rows[rows["status"] == "ok"]
    good = good.assign(tpot_ms=good["tpot_ms"].astype(float))
    ways = good.groupby([*WAY, "temperature"], dropna=False)
    times = good.groupby([*WAY, "temperature", "prompt_id"], dropna=False)["tpot_ms"].median()
    times = times.unstack("prompt_id").dropna()  # one line a way, one column a prompt
    plain = {(way[0], way[-1]): tpot for way, tpot in times.iterrows() if way[1] == AUTOREGRESSIVE}
    lines = []
    for way, tpot in times.iterrows():
        line, here = dict(zip(times.index.names, way, strict=True)), ways.get_group(way)
        line |= {"engine_version": here["engine_version"].iloc[0], "prompts": len(tpot)}
        mean = geometric_mean(tpot.to_numpy(), np.random.default_rng(0))
        line |= {"tpot_ms": mean.value, "tpot_ms_low": mean.low, "tpot_ms_high": mean.high}
        for name, (engine, _) in RATIOS.items():
            estimate = _ratio(tpot, plain.get((engine, line["temperature"])), seed)
            line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        line["evidence"] = "measured"
        line["same_tokens"] = None if line["temperature"] else _agreement(here, good[good["temperature"] == 0])
        lines.append(line)
    numbers = [f"{name}{end}" for name in ("tpot_ms", *RATIOS) for end in ("", "_low", "_high")]
    columns = [*WAY, "temperature", "engine_version", "prompts", *numbers, "evidence", "same_tokens"]
    return pd.DataFrame(lines, columns=columns)


def best_lines(lines: pd.DataFrame) -> pd.DataFrame:
    """Of every engine and temperature the line without speculation and the fastest with it, the fastest engine first.

    Args:
        lines: from `peer_lines`.
    """
    keep = ["temperature", "engine"]
    plain = lines[lines["method"] == AUTOREGRESSIVE]
    speculating = lines[lines["method"] != AUTOREGRESSIVE].sort_values("tpot_ms").drop_duplicates(keep)
    best = pd.concat([speculating, plain]).sort_values("tpot_ms")
    fastest = best.groupby(keep)["tpot_ms"].transform("min")
    return best.assign(fastest=fastest).sort_values(["temperature", "fastest", "tpot_ms"]).drop(columns="fastest")


def _ratio(tpot: pd.Series, reference: pd.Series | None, seed: int) -> Estimate:
    if reference is None:
        return Estimate(np.nan, np.nan, np.nan, 0)
    return geometric_mean((tpot / reference).to_numpy(), np.random.default_rng(seed))


def _agreement(way: pd.DataFrame, greedy: pd.DataFrame) -> float | None:
    """The mean share of an output up to its first difference from our baseline's; None without a baseline."""
    baseline = greedy[(greedy["engine"] == OURS) & (greedy["method"] == AUTOREGRESSIVE)].drop_duplicates("prompt_id")
    expected = dict(zip(baseline["prompt_id"], baseline["tokens"], strict=True))
    shares = []
    for prompt_id, tokens in zip(way["prompt_id"], way["tokens"], strict=True):
        if prompt_id in expected:
            differ = np.flatnonzero(np.asarray(tokens) != np.asarray(expected[prompt_id]))
            shares.append((differ[0] if len(differ) else len(tokens)) / len(tokens))
    return float(np.mean(shares)) if shares else None


def way_name(engine: str, method: str, draft_id: object, gamma: object) -> str:
    """A way for readers."""
    name = f"{'ours' if engine == OURS else engine}, {label(method)}"
    if pd.isna(draft_id):
        return name
    own_draft = method in METHODS and not METHODS[method].uses_pair_draft
    drafted = "" if own_draft else f" {draft_id}"
    return f"{name}{drafted}, {'its own γ' if pd.isna(gamma) else f'γ = {gamma:.0f}'}"


def line_table(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines for readers, in their order."""
    if lines.empty:
        return lines
    table = pd.DataFrame(
        {
            "way": [way_name(*way) for way in zip(*(lines[n] for n in WAY if n != "pair"), strict=True)],
            "T": [f"{temperature:g}" for temperature in lines["temperature"]],
        }
    )
    for name, heading in HEADINGS.items():
        bounds = zip(lines[name], lines[f"{name}_low"], lines[f"{name}_high"], strict=True)
        table[heading] = [_with_interval(*numbers) for numbers in bounds]
    table["greedy tokens as our baseline"] = ["–" if pd.isna(s) else f"{s:.0%}" for s in lines["same_tokens"]]
    return table


def _with_interval(value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.2f}" if np.isnan(low) else f"{value:.2f} ({low:.2f} to {high:.2f})"


def finding_peers(lines: pd.DataFrame) -> str:
    """The fastest way of ours and of the other engines, in a sentence for each temperature."""
    said = []
    for temperature, here in lines.sort_values("tpot_ms").groupby("temperature"):
        first, *others = here.drop_duplicates("engine").itertuples()
        sentence = f"At T = {temperature:g} the fastest is {_with_time(first)}"
        said.append(f"{sentence}; the next engine is {_with_time(others[0])}." if others else f"{sentence}.")
    return " ".join(said) or "No engine decoded every prompt."


def finding_against_peers(lines: pd.DataFrame) -> str:
    """Our fastest way over the fastest of all other engines, in a sentence for each temperature."""
    said = []
    for temperature, here in lines.groupby("temperature"):
        ours, others = here[here["engine"] == OURS], here[here["engine"] != OURS]
        if len(ours) and len(others):
            best = others.loc[others["tpot_ms"].idxmin()]
            name = way_name(best["engine"], best["method"], best["draft_id"], best["num_draft_tokens"])
            ratio = ours["tpot_ms"].min() / best["tpot_ms"]
            said.append(
                f"At T = {temperature:g} our time per token is {ratio:.2f} times that of the best peer, {name}."
            )
    return " ".join(said) or "No other engine decoded every prompt."


def _with_time(line: Any) -> str:
    return f"{way_name(line.engine, line.method, line.draft_id, line.num_draft_tokens)} ({line.tpot_ms:.2f} ms)"


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """What failed, with its reason."""
    failed = rows[rows["status"] == "failed"]
    return failed[["engine", "method", "draft_id", "num_draft_tokens", "temperature", "prompt_id", "error"]]


def finding_setting(rows: pd.DataFrame) -> str:
    """What was run, in a sentence."""
    if rows.empty:
        return "No engine was asked."
    first = rows.iloc[0]
    engines = ", ".join(f"{e.engine} {e.engine_version}" for e in rows.drop_duplicates("engine").itertuples())
    return (
        f"{first['target_id']} in {first['dtype']} on {first['device_name']}, {first['threads']} threads: "
        f"{rows['prompt_id'].nunique()} prompts of the set {first['prompt_set']}, {first['max_new_tokens']} new "
        f"tokens, {rows['repetition'].max() + 1} repetition(s). Engines: {engines}."
    )
