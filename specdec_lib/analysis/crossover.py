"""The batch size B* at which speculation stops paying, by prompt length, gamma and temperature."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from specdec_lib.analysis import metrics
from specdec_lib.analysis.statistics import LEAST_VALUES

RESAMPLES = 2000
SETTING = ["pair", "dtype", "method", "num_draft_tokens", "temperature", "prompt_tokens", "max_new_tokens"]
COLUMNS = ["crossover_batch", "crossover_low", "crossover_high", "smallest_batch", "largest_batch", "reading"]


def measured_crossovers(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One line for each setting that was measured at two batch sizes or more, with a 95 % bootstrap band over prompts.

    `crossover_batch` is interpolated on the logarithm of the batch size; it is null where the speedup stays on one side
    of 1, and `reading` says on which. A band that reaches beyond what was measured ends there; with fewer than
    `statistics.LEAST_VALUES` prompt groups at some batch size there is none.
    """
    kept = metrics.undisturbed(rows)
    ratios = _ratios(kept)
    rng = np.random.default_rng(seed)
    lines = []
    for key, group in ratios.groupby(SETTING, dropna=False):
        if group["batch_size"].nunique() < 2:
            continue
        by_batch = {int(batch): np.log(values["speedup"].to_numpy()) for batch, values in group.groupby("batch_size")}
        lines.append(dict(zip(SETTING, key, strict=True)) | _crossover(by_batch, rng) | {"evidence": "measured"})
    return pd.DataFrame(lines, columns=[*SETTING, *COLUMNS, "evidence"])


def predicted_crossovers(lines: pd.DataFrame) -> pd.DataFrame:
    """The same from predicted lines, as far as they fit; the band is that of the assumptions, not of a sample."""
    methods = lines[(lines["method"] != metrics.BASELINE) & lines["fits"]].assign(temperature=np.nan)
    found = []
    for key, group in methods.groupby(["gpu", *SETTING], dropna=False):
        group = group.sort_values("batch_size")
        batches = group["batch_size"].to_numpy(float)
        value, low, high = (
            crossing(batches, np.log(group[name])) for name in ("speedup", "speedup_low", "speedup_high")
        )
        edges = {"smallest_batch": int(batches[0]), "largest_batch": int(batches[-1])}
        found.append(
            dict(zip(["gpu", *SETTING], key, strict=True))
            | {"crossover_batch": _inside(value), "crossover_low": _clip(low, batches)}
            | {"crossover_high": _clip(high, batches), **edges, "reading": reading(batches, np.log(group["speedup"]))}
            | {"evidence": "predicted"}
        )
    return pd.DataFrame(found, columns=["gpu", *SETTING, *COLUMNS, "evidence"])


def with_study(tables: Iterable[tuple[str | None, pd.DataFrame]]) -> pd.DataFrame:
    """Crossovers of several studies in one table, each with the study's name if it has none yet."""
    named = [table.assign(gpu=gpu) if gpu else table for gpu, table in tables]
    columns = ["gpu", *SETTING, *COLUMNS, "evidence"]
    numbers = dict.fromkeys(("num_draft_tokens", "temperature", "prompt_tokens", "crossover_batch"), "Float64")
    filled = [table.reindex(columns=columns).astype(numbers) for table in named if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)


def _ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """The paired speedup of every prompt group, a median over repetitions."""
    own = rows[rows["engine"] == metrics.OWN_ENGINE]
    baseline = own[own["method"] == metrics.BASELINE][[*metrics.PAIRED_BY, "tpot_ms"]]
    paired = own[own["method"] != metrics.BASELINE].merge(baseline, on=metrics.PAIRED_BY, suffixes=("", "_baseline"))
    paired["speedup"] = paired["tpot_ms_baseline"] / paired["tpot_ms"]
    by = [*SETTING, "batch_size", "prompt_group"]
    return paired.groupby(by, dropna=False)["speedup"].median().dropna().reset_index()


def _crossover(by_batch: dict[int, np.ndarray], rng: np.random.Generator) -> dict[str, object]:
    batches = np.array(sorted(by_batch), dtype=float)
    logs = [by_batch[int(batch)] for batch in batches]
    means = np.array([values.mean() for values in logs])
    value = crossing(batches, means)
    low = high = np.nan
    if min(map(len, logs)) >= LEAST_VALUES:
        resampled = [
            crossing(batches, np.array([rng.choice(values, len(values)).mean() for values in logs]))
            for _ in range(RESAMPLES)
        ]
        low, high = np.quantile(np.clip(resampled, batches[0], batches[-1]), [0.025, 0.975])
    return {
        "crossover_batch": _inside(value), "crossover_low": float(low), "crossover_high": float(high),
        "smallest_batch": int(batches[0]), "largest_batch": int(batches[-1]), "reading": reading(batches, means),
    }  # fmt: skip


def crossing(batches: np.ndarray, log_speedups: np.ndarray | pd.Series) -> float:
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


def _inside(value: float) -> float | None:
    return value if 0 < value < np.inf else None


def _clip(value: float, batches: np.ndarray) -> float:
    return float(np.clip(value, batches[0], batches[-1]))


def reading(batches: np.ndarray, log_speedups: np.ndarray | pd.Series) -> str:
    """What a curve says of the batch sizes at which speculation pays, in words."""
    value = crossing(batches, log_speedups)
    if value == 0:
        pays = (np.asarray(log_speedups, dtype=float) >= 0).any()
        return "pays at some larger batch only" if pays else f"pays at no batch from {batches[0]:g} to {batches[-1]:g}"
    return (
        f"pays up to batch {batches[-1]:g}, the largest tried" if value == np.inf else f"pays below batch {value:.3g}"
    )
