"""From raw rows (one per decode call) to lines (one per setting): paired speedups, rates and latencies.

Rates are pooled from counters, never averaged from rates. Latencies are medians over repetitions for each prompt group,
then medians over groups. TPOT is a geometric mean over groups instead, as the speedup is: so the baseline's TPOT over a
method's is its speedup, up to the pairing by repetition. Undefined is NaN or NA.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from specdec_lib.analysis.statistics import mean_over_prompts, over_prompts
from specdec_lib.methods import AUTOREGRESSIVE, FIXED_LENGTH
from specdec_lib.study.cells import GIVEN

OWN_ENGINE = "specdec_lib"
SETTING = ["pair", "dtype", "temperature", "top_k", "top_p", "batch_size", "prompt_tokens", "max_new_tokens"]
SETTING += ["stop", "prompt_set"]
PAIRED_BY = [*SETTING, "run_id", "prompt_group", "repetition"]
LINE = ["engine", "method", "num_draft_tokens", "verification", "draft_length", "compiled", *SETTING, "evidence"]
COUNTERS = ["new_tokens", "steps", "drafted_tokens", "tested_tokens", "accepted_tokens"]
LATENCIES = ["ttft_ms", "tpot_ms", "itl_p50_ms", "itl_p90_ms", "itl_p99_ms"]
DEVICE_MEMORY, PROCESS_MEMORY = "peak_memory_allocated_bytes", "process_peak_rss_bytes"
MEMORY = [DEVICE_MEMORY, "peak_memory_reserved_bytes", "device_memory_used_bytes", PROCESS_MEMORY]
POWER = ["energy_joules_per_token", "gpu_utilization_percent"]
RATIOS = ["speedup", "e2e_speedup"]
COLUMNS = [*LINE, *(f"{name}{end}" for name in RATIOS for end in ("", "_low", "_high")), "num_prompts", *COUNTERS]
COLUMNS += ["acceptance_rate", "draft_efficiency", "mean_acceptance_length", *LATENCIES, "tokens_per_second"]
COLUMNS += ["prefill_share", "mean_prompt_tokens", *POWER, *MEMORY]


def speedups(rows: pd.DataFrame, seed: int = 0, reference: str = OWN_ENGINE, by: Sequence[str] = ()) -> pd.DataFrame:
    """One line per setting, with its speedup over the autoregressive decoding of an engine.

    `speedup` (of TPOT) and `e2e_speedup` (of whole calls, prefill included) are paired per prompt group and
    repetition: median over repetitions, geometric mean over groups, 95 % BCa interval in `*_low` and `*_high`.

    Args:
        rows: the results table; rows that do not count (see `undisturbed`) are left out.
        seed: of the bootstrap.
        reference: the engine whose baseline is the reference.
        by: columns that divide a setting further, such as the category of its prompts.

    Raises:
        ValueError: two baseline rows claim the same setting, prompt group and repetition.
    """
    keys = [*LINE, *by]
    lines = [
        dict(zip(keys, key, strict=True)) | _paired(group, seed) | _pooled(group) | _timed(group)
        for key, group in with_ratios(rows, reference).groupby(keys, dropna=False)
    ]
    return _numbered(pd.DataFrame(lines, columns=[*COLUMNS, *by]))


def with_ratios(rows: pd.DataFrame, reference: str = OWN_ENGINE) -> pd.DataFrame:
    """The rows that count, each with its `speedup` and `e2e_speedup` over the baseline row that it is paired with.

    Args:
        reference: the engine whose baseline is the reference.

    Raises:
        ValueError: two baseline rows claim the same setting, prompt group and repetition.
    """
    rows = undisturbed(rows)
    baseline = rows[(rows["engine"] == reference) & (rows["method"] == AUTOREGRESSIVE)]
    twice = baseline.duplicated(PAIRED_BY)
    if twice.any():
        raise ValueError(
            f"{int(twice.sum())} baseline rows repeat a setting, prompt group and repetition: "
            "keep one run per results folder, or remove the older cells"
        )
    timed = baseline[[*PAIRED_BY, "tpot_ms", "tokens_per_second"]]
    paired = rows.merge(timed, how="left", on=PAIRED_BY, suffixes=("", "_reference"))
    paired["speedup"] = paired["tpot_ms_reference"] / paired["tpot_ms"]
    paired["e2e_speedup"] = paired["tokens_per_second"] / paired["tokens_per_second_reference"]
    return paired


def acceptance_by_position(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per speculative setting and draft position (1..gamma), from the pooled histograms.

    `tested` counts the drafts that were accepted up to this position and had a token there, `accepted` those whose
    token there was accepted too; `acceptance_rate` is accepted / tested. Rows whose acceptance was given have no line.
    """
    measured = distinct_outputs(undisturbed(rows))
    found = measured[(measured["method"] != AUTOREGRESSIVE) & (measured["verification"] != GIVEN)]
    lines = []
    for key, group in found.groupby(LINE, dropna=False):
        histograms = (_sum_histograms(group[f"{name}_by_position"]) for name in ("tested", "accepted"))
        for position, (tested, accepted) in enumerate(zip(*histograms, strict=True), start=1):
            counts = (position, int(tested), int(accepted), _ratio(accepted, tested))
            lines.append((*key, *counts))
    return _numbered(pd.DataFrame(lines, columns=[*LINE, "position", "tested", "accepted", "acceptance_rate"]))


def memory_column(lines: pd.DataFrame) -> str:
    """The column that holds the memory of this device: a CPU run has no device memory."""
    return DEVICE_MEMORY if lines[DEVICE_MEMORY].notna().any() else PROCESS_MEMORY


def has_fixed_length(table: pd.DataFrame) -> pd.Series:
    """Whether rows or lines draft gamma tokens in every step, as formulas assume; so did all rows of old runs."""
    if "draft_length" not in table:
        return pd.Series(True, index=table.index)
    return table["draft_length"].isna() | table["draft_length"].isin([FIXED_LENGTH])


def undisturbed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that count: measured, not failed, on a device neither throttled nor shared, that did not drift."""
    ok = (rows["status"] == "ok") & (rows["evidence"] == "measured")
    disturbed = rows["throttled"].fillna(False).astype(bool) | rows["drifted"].fillna(False).astype(bool)
    disturbed |= rows["foreign_processes"].fillna(0).astype(int) > 0
    return _numbered(rows[ok & ~disturbed])


def distinct_outputs(rows: pd.DataFrame) -> pd.DataFrame:
    """One row of each greedy output of a line and prompt group: a repetition of it adds no information."""
    again = rows.duplicated([*LINE, "prompt_group", "tokens_sha256"]) & rows["tokens_sha256"].notna()
    return rows[~(again & (rows["temperature"] == 0))]


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    """Nullable integers where null has a meaning, so that 4 stays 4 next to a null; plain floats, NaN for null."""
    types = dict.fromkeys(("num_draft_tokens", "prompt_tokens"), "Int64")
    types |= dict.fromkeys(table.columns[table.dtypes == "Float64"], "float64")
    return table.astype(types).reset_index(drop=True)


def _paired(group: pd.DataFrame, seed: int) -> dict[str, float]:
    line: dict[str, float] = {}
    for column in RATIOS:
        estimate = over_prompts(group, column, seed)
        line |= {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
    return line | {"num_prompts": estimate.count}


def _pooled(group: pd.DataFrame) -> dict[str, float]:
    """Counters summed over the outputs of a line, each counted once, and the rates that follow from them."""
    outputs = distinct_outputs(group)
    counts = {name: outputs[name].sum(min_count=1) for name in COUNTERS}
    given = (group["verification"] == GIVEN).any()
    accepted = np.nan if given else counts["accepted_tokens"]
    emitted = np.nan if given else counts["new_tokens"] - outputs["batch_size"].sum()  # by passes, not by the prefill
    return counts | {
        "acceptance_rate": _ratio(accepted, counts["tested_tokens"]),
        "draft_efficiency": _ratio(accepted, counts["drafted_tokens"]),
        "mean_acceptance_length": _ratio(emitted, counts["steps"]),
    }


def _timed(group: pd.DataFrame) -> dict[str, float]:
    """Latencies, power and memory of a line.

    `tokens_per_second` is total tokens over total time, a harmonic mean over prompt groups. `prefill_share` is the
    share of the total time before the first tokens. Power is a mean over rows, and unknown where one row has none: only
    the shortest calls lack it.
    """
    numbers = [*LATENCIES, "tokens_per_second", "mean_prompt_tokens"]
    per_prompt = group.groupby("prompt_group")[numbers].median().astype(float)
    throughput = 1 / (1 / per_prompt["tokens_per_second"]).mean()
    tokens = group.groupby("prompt_group")["new_tokens"].median().astype(float).mean()
    call_ms = 1000 * tokens / throughput
    return {name: per_prompt[name].median() for name in LATENCIES} | {
        "tpot_ms": mean_over_prompts(group, "tpot_ms"),
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
    return pd.DataFrame(list(map(list, histograms.dropna()))).sum().to_numpy(dtype=np.int64)
