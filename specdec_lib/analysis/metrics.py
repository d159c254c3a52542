"""From raw rows (one per decode call) to lines (one per setting): paired speedups, rates and latencies.

Rates are pooled from counters, never averaged from rates. Latencies are medians over repetitions for each prompt group,
then medians over groups; TPOT is a geometric mean over groups instead, as the speedup is, so that the baseline's TPOT
over a method's is its speedup, up to the pairing by repetition. Undefined is NaN or NA.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from specdec_lib.analysis.statistics import Estimate, geometric_mean
from specdec_lib.config import StudyParams
from specdec_lib.study.cells import GIVEN

OWN_ENGINE = "specdec_lib"
BASELINE = "autoregressive"
SETTING = ["pair", "dtype", "temperature", "top_k", "top_p", "batch_size", "prompt_tokens", "max_new_tokens"]
SETTING += ["prompt_set"]
PAIRED_BY = [*SETTING, "run_id", "prompt_group", "repetition"]
LINE = ["engine", "method", "num_draft_tokens", "verification", "compiled", *SETTING, "evidence"]
COUNTERS = ["new_tokens", "steps", "drafted_tokens", "tested_tokens", "accepted_tokens"]
LATENCIES = ["ttft_ms", "tpot_ms", "itl_p50_ms", "itl_p90_ms", "itl_p99_ms"]
MEMORY = [
    "peak_memory_allocated_bytes",
    "peak_memory_reserved_bytes",
    "device_memory_used_bytes",
    "process_peak_rss_bytes",
]

# Means over rows, as the lag of the counter cancels; unknown where one row has none, which are the shortest calls.
POWER = ["energy_joules_per_token", "gpu_utilization_percent"]

RATIOS = ["speedup", "throughput_ratio"]
COLUMNS = [*LINE, *(f"{name}{end}" for name in RATIOS for end in ("", "_low", "_high")), "num_prompts", *COUNTERS]
COLUMNS += ["acceptance_rate", "draft_efficiency", "mean_acceptance_length", *LATENCIES, "tokens_per_second"]
COLUMNS += ["prefill_share", "mean_prompt_tokens", *POWER, *MEMORY]


def speedups(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One line per setting, with its speedup over the library's own autoregressive decoding.

    `speedup` (of TPOT) and `throughput_ratio` (of tokens per second, prefill included) are paired per prompt group and
    repetition: median over repetitions, geometric mean over groups, 95 % BCa interval in `*_low` and `*_high`.

    Args:
        rows: the results table; failed rows are left out here and listed by `failures`, and rows of a throttled,
            shared or drifting device are left out and listed by `tables.trouble_table`.
        seed: of the bootstrap.

    Raises:
        ValueError: two baseline rows claim the same setting, prompt group and repetition.
    """
    measured = undisturbed(rows)
    return _lines(measured, measured[_is_baseline(measured, OWN_ENGINE)], seed)


def speedups_over_transformers(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """As `speedups`, with autoregressive `transformers.generate` as the reference.

    Only the settings that transformers was timed on; empty if there are none.
    """
    measured = undisturbed(rows)
    lines = _lines(measured, measured[_is_baseline(measured, "transformers")], seed)
    return lines[lines["num_prompts"] > 0].reset_index(drop=True)


def headline_setting(table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """The rows or lines at the first batch size, prompt length and output length of the params."""
    return table[_at(table, params, ("batch_size", "prompt_tokens", "max_new_tokens"))].reset_index(drop=True)


def headline(lines: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """The headline lines: each method of the library at the headline setting and the headline gamma.

    Gamma is chosen in the params, before measuring, so the headline is not the best of several noisy numbers.
    """
    own = headline_setting(lines, params)
    return own[_own_at_gamma(own, params)].reset_index(drop=True)


def along(lines: pd.DataFrame, params: StudyParams, axis: str) -> pd.DataFrame:
    """The library's lines that vary in `axis` only (and in method and temperature), all else as in the headline.

    Args:
        axis: num_draft_tokens, batch_size, prompt_tokens or max_new_tokens.
    """
    fixed = tuple(name for name in ("batch_size", "prompt_tokens", "max_new_tokens") if name != axis)
    keep = _at(lines, params, fixed) & (lines["engine"] == OWN_ENGINE)
    if axis != "num_draft_tokens":
        keep &= _own_at_gamma(lines, params)
    return lines[keep].reset_index(drop=True)


def own_settings(table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """The library's lines at the first prompt and output length of the params: every batch size, every gamma."""
    keep = _at(table, params, ("prompt_tokens", "max_new_tokens")) & (table["engine"] == OWN_ENGINE)
    return table[keep].reset_index(drop=True)


def acceptance_by_position(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per speculative setting and draft position (1..gamma), from the pooled histograms.

    `tested` counts the drafts (over steps and rows) that were accepted up to this position and had a token there,
    `accepted` those whose token there was accepted too; `acceptance_rate` is accepted / tested, and `accepted_per_pass`
    is accepted over all verification passes. Rows whose acceptance was given have none to show.
    """
    measured = distinct_outputs(undisturbed(rows))
    found = measured[(measured["method"] != BASELINE) & (measured["verification"] != GIVEN)]
    lines = []
    for key, group in found.groupby(LINE, dropna=False):
        passes = group["steps"].sum()
        histograms = (_sum_histograms(group[f"{name}_by_position"]) for name in ("tested", "accepted"))
        for position, (tested, accepted) in enumerate(zip(*histograms, strict=True), start=1):
            counts = {"position": position, "tested": int(tested), "accepted": int(accepted)}
            rates = {"acceptance_rate": _ratio(accepted, tested), "accepted_per_pass": _ratio(accepted, passes)}
            lines.append(dict(zip(LINE, key, strict=True)) | counts | rates)
    columns = [*LINE, "position", "tested", "accepted", "acceptance_rate", "accepted_per_pass"]
    return _numbered(pd.DataFrame(lines, columns=columns))


def token_gaps(rows: pd.DataFrame) -> pd.DataFrame:
    """Waiting time before each emitted token, `gap_ms`, for calls of batch size 1.

    The tokens of one step arrive together: the first waits for the step, the others 0 ms.
    """
    measured = undisturbed(rows)
    frames = []
    stepwise = measured[(measured["batch_size"] == 1) & measured["step_ms"].notna()]
    for key, group in stepwise.groupby(LINE, dropna=False):
        steps = np.concatenate([np.asarray(values, dtype=float) for values in group["step_ms"]])
        tokens = np.concatenate([np.asarray(values, dtype=float) for values in group["step_tokens"]])
        gaps = np.concatenate([steps[tokens >= 1], np.zeros(int(np.maximum(tokens - 1, 0).sum()))])
        frames.append(pd.DataFrame({"gap_ms": np.sort(gaps)}).assign(**dict(zip(LINE, key, strict=True))))
    return _numbered(pd.concat(frames, ignore_index=True)) if frames else pd.DataFrame(columns=[*LINE, "gap_ms"])


def memory_column(lines: pd.DataFrame) -> str:
    """The column that holds the memory of this device: a CPU run has no device memory."""
    on_device = lines["peak_memory_allocated_bytes"].notna().any()
    return "peak_memory_allocated_bytes" if on_device else "process_peak_rss_bytes"


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """The failed rows: what was tried and why it failed."""
    failed = rows[rows["status"] == "failed"]
    return _numbered(failed[["cell_id", *LINE, "prompt_group", "repetition", "error"]])


def undisturbed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that count: measured, not failed, on a device neither throttled nor shared, that did not drift."""
    ok = (rows["status"] == "ok") & (rows["evidence"] == "measured")
    disturbed = rows["throttled"].fillna(False).astype(bool) | rows["drifted"].fillna(False).astype(bool)
    disturbed |= rows["foreign_processes"].fillna(0).astype(int) > 0
    return _numbered(rows[ok & ~disturbed])


def distinct_outputs(rows: pd.DataFrame) -> pd.DataFrame:
    """One row of each greedy output that a line gave to a prompt group: repeated it tells nothing new."""
    again = rows.duplicated([*LINE, "prompt_group", "tokens_sha256"]) & rows["tokens_sha256"].notna()
    again &= rows["temperature"] == 0
    return rows[~again]


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    """Nullable integers where null has a meaning, so that 4 stays 4 beside a null; plain floats, NaN for null."""
    types = dict.fromkeys(("num_draft_tokens", "prompt_tokens"), "Int64")
    types |= dict.fromkeys(table.columns[table.dtypes == "Float64"], "float64")
    return table.astype(types).reset_index(drop=True)


def _is_baseline(rows: pd.DataFrame, engine: str) -> pd.Series:
    return (rows["engine"] == engine) & (rows["method"] == BASELINE)


def _at(table: pd.DataFrame, params: StudyParams, axes: tuple[str, ...]) -> pd.Series:
    keep = pd.Series(True, index=table.index)
    for axis, values in (
        ("batch_size", params.batch_sizes),
        ("prompt_tokens", params.prompt_tokens),
        ("max_new_tokens", params.max_new_tokens),
    ):
        if axis in axes:  # prompt_tokens: 0 in the params, prompts as they are, is null in the table
            keep &= table[axis].fillna(0).astype(int) == values[0]
    return keep


def _own_at_gamma(table: pd.DataFrame, params: StudyParams) -> pd.Series:
    gamma = table["num_draft_tokens"].fillna(params.headline_num_draft_tokens).astype(int)
    return (table["engine"] == OWN_ENGINE) & (gamma == params.headline_num_draft_tokens)


def _lines(rows: pd.DataFrame, reference: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Group rows into lines; each row is first paired with the reference row of the same prompts and repetition."""
    twice = reference.duplicated(PAIRED_BY)
    if twice.any():
        raise ValueError(
            f"{int(twice.sum())} baseline rows repeat a setting, prompt group and repetition: "
            "keep one run per results folder, or remove the older cells"
        )
    timed = reference[[*PAIRED_BY, "tpot_ms", "tokens_per_second"]]
    paired = rows.merge(timed, how="left", on=PAIRED_BY, suffixes=("", "_reference"))
    paired["speedup"] = paired["tpot_ms_reference"] / paired["tpot_ms"]
    paired["throughput_ratio"] = paired["tokens_per_second"] / paired["tokens_per_second_reference"]
    lines = [
        dict(zip(LINE, key, strict=True)) | _paired(group, seed) | _pooled(group) | _timed(group)
        for key, group in paired.groupby(LINE, dropna=False)
    ]
    return _numbered(pd.DataFrame(lines, columns=COLUMNS))


def _paired(group: pd.DataFrame, seed: int) -> dict[str, float]:
    line: dict[str, float] = {}
    for column in RATIOS:
        estimate = _over_prompts(group, column, seed)
        line |= {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
    return line | {"num_prompts": estimate.count}


def _over_prompts(group: pd.DataFrame, column: str, seed: int) -> Estimate:
    per_prompt = group.groupby("prompt_group")[column].median().dropna()
    return geometric_mean(per_prompt.to_numpy(), np.random.default_rng(seed))


def _pooled(group: pd.DataFrame) -> dict[str, float]:
    """Counters summed over the outputs of a line, each counted once, and the rates that follow from them."""
    counts = {name: distinct_outputs(group)[name].sum(min_count=1) for name in COUNTERS}
    accepted = np.nan if (group["verification"] == GIVEN).any() else counts["accepted_tokens"]
    return counts | {
        "acceptance_rate": _ratio(accepted, counts["tested_tokens"]),
        "draft_efficiency": _ratio(accepted, counts["drafted_tokens"]),
        "mean_acceptance_length": 1 + _ratio(accepted, counts["steps"]),
    }


def _timed(group: pd.DataFrame) -> dict[str, float]:
    """Latencies and memory of a line; tokens per second is total tokens over total time, a harmonic mean.

    `tpot_ms` is the geometric mean over prompt groups of each group's median over repetitions; `prefill_share` is the
    share of the total time before the first tokens.
    """
    numbers = [*LATENCIES, "tokens_per_second", "mean_prompt_tokens"]
    per_prompt = group.groupby("prompt_group")[numbers].median().astype(float)
    throughput = 1 / (1 / per_prompt["tokens_per_second"]).mean()
    call_ms = 1000 * group["batch_size"].iloc[0] * group["max_new_tokens"].iloc[0] / throughput
    return {name: per_prompt[name].median() for name in LATENCIES} | {
        "tpot_ms": float(np.exp(np.log(per_prompt["tpot_ms"]).mean())),
        "tokens_per_second": throughput,
        "prefill_share": per_prompt["ttft_ms"].mean() / call_ms,
        "mean_prompt_tokens": per_prompt["mean_prompt_tokens"].mean(),
        **{name: pd.to_numeric(group[name]).astype(float).mean(skipna=False) for name in POWER},
        **{name: pd.to_numeric(group[name]).max() for name in MEMORY},
    }


def _ratio(numerator: float, denominator: float) -> float:
    known = pd.notna(numerator) and pd.notna(denominator) and denominator > 0
    return float(numerator / denominator) if known else np.nan


def _sum_histograms(histograms: pd.Series) -> np.ndarray:
    """Sum by position; a null, from a call that verified nothing, adds nothing."""
    histograms = histograms.dropna()
    total = np.zeros(max((len(values) for values in histograms), default=0), dtype=np.int64)
    for values in histograms:
        total[: len(values)] += np.asarray(values, dtype=np.int64)
    return total
