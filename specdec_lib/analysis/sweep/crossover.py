"""The batch size B* at which speculation stops paying, by prompt length, gamma and temperature."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from specdec_lib.analysis import metrics
from specdec_lib.analysis.statistics import LEAST_VALUES
from specdec_lib.methods import AUTOREGRESSIVE

RESAMPLES = 2000
SETTING = ["pair", "dtype", "method", "num_draft_tokens", "temperature", "prompt_tokens", "max_new_tokens"]
COLUMNS = ["gpu", *SETTING, "crossover_batch", "crossover_batch_low", "crossover_batch_high"]
COLUMNS += ["smallest_batch", "largest_batch", "outcome", "evidence"]

# The outcomes, by what the speedup does over the batch sizes tried.
CROSSES = "crosses"  # it falls through 1 at `crossover_batch`
ALWAYS = "always"  # it never falls below 1
NEVER = "never"  # it never reaches 1
LATER = "later"  # it starts below 1 and reaches it at some larger batch size


def measured_crossovers(rows: pd.DataFrame, gpu: str | None = None, seed: int = 0) -> pd.DataFrame:
    """One line for each setting that was measured at two batch sizes or more, with a 95 % bootstrap band over prompts.

    `crossover_batch` is interpolated on the logarithm of the batch size; it is null unless the `outcome` is "crosses".
    A band that would reach beyond the batch sizes tried ends there. With fewer than `statistics.LEAST_VALUES` prompt
    groups at some batch size there is no band. `gpu` is the name of the run's study.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for key, group in _ratios(metrics.undisturbed(rows)).groupby(SETTING, dropna=False):
        by_batch = {float(batch): np.log(values["speedup"].to_numpy()) for batch, values in group.groupby("batch_size")}
        if len(by_batch) < 2:
            continue
        batches, logs = np.array(list(by_batch)), list(by_batch.values())
        band = (np.nan, np.nan)
        if min(map(len, logs)) >= LEAST_VALUES:
            resampled = [
                crossing(batches, [rng.choice(values, len(values)).mean() for values in logs]) for _ in range(RESAMPLES)
            ]
            band = tuple(np.quantile(np.clip(resampled, batches[0], batches[-1]), [0.025, 0.975]))
        line = _line(batches, [values.mean() for values in logs], band)
        lines.append(dict(zip(SETTING, key, strict=True)) | line)
    return pd.DataFrame(lines, columns=COLUMNS).assign(gpu=gpu, evidence="measured")


def predicted_crossovers(lines: pd.DataFrame) -> pd.DataFrame:
    """The same from predicted lines, as far as they fit; the band is that of the assumptions, not of a sample."""
    if lines.empty:
        return pd.DataFrame(columns=COLUMNS)
    methods = lines[(lines["method"] != AUTOREGRESSIVE) & lines["fits"]].assign(temperature=np.nan)
    found = []
    for key, group in methods.groupby(["gpu", *SETTING], dropna=False):
        group = group.sort_values("batch_size")
        batches = group["batch_size"].to_numpy(float)
        ends = (crossing(batches, np.log(group[name])) for name in ("speedup_low", "speedup_high"))
        line = _line(batches, np.log(group["speedup"]), tuple(np.clip(list(ends), batches[0], batches[-1])))
        found.append(dict(zip(["gpu", *SETTING], key, strict=True)) | line)
    return pd.DataFrame(found, columns=COLUMNS).assign(evidence="predicted")


def all_crossovers(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Crossovers of several studies in one table."""
    numbers = dict.fromkeys(("num_draft_tokens", "temperature", "prompt_tokens", "crossover_batch"), "Float64")
    filled = [table.astype(numbers) for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS)


def crossing(batches: np.ndarray, log_speedups: Iterable[float]) -> float:
    """Where the curve first falls below 1: 0 if it starts there, infinity if it never does."""
    logs = np.asarray(log_speedups, dtype=float)
    below = np.flatnonzero(logs < 0)
    if not below.size:
        return np.inf
    last = int(below[0])
    if last == 0:
        return 0.0
    share = logs[last - 1] / (logs[last - 1] - logs[last])
    return float(np.exp(np.log(batches[last - 1]) + share * np.log(batches[last] / batches[last - 1])))


def _ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """The paired speedup of every prompt group, a median over repetitions."""
    own = rows[rows["engine"] == metrics.OWN_ENGINE]
    is_baseline = own["method"] == AUTOREGRESSIVE
    baseline = own[is_baseline][[*metrics.PAIRED_BY, "tpot_ms"]]
    paired = own[~is_baseline].merge(baseline, on=metrics.PAIRED_BY, suffixes=("", "_baseline"))
    paired["speedup"] = paired["tpot_ms_baseline"] / paired["tpot_ms"]
    by = [*SETTING, "batch_size", "prompt_group"]
    return paired.groupby(by, dropna=False)["speedup"].median().dropna().reset_index()


def _line(batches: np.ndarray, log_speedups: Iterable[float], band: tuple[float, ...]) -> dict[str, object]:
    value, logs = crossing(batches, log_speedups), np.asarray(log_speedups, dtype=float)
    if value == 0:
        outcome = LATER if (logs >= 0).any() else NEVER
    else:
        outcome = ALWAYS if value == np.inf else CROSSES
    return {
        "crossover_batch": value if outcome == CROSSES else None,
        "crossover_batch_low": float(band[0]),
        "crossover_batch_high": float(band[1]),
        "smallest_batch": int(batches[0]),
        "largest_batch": int(batches[-1]),
        "outcome": outcome,
    }
