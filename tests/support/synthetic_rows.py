"""A results table without a run: every setting of a small study, timed by a made-up but plausible machine."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from specdec_lib.config import StudyParams, validate_params
from specdec_lib.study.rows.table import as_table

STUDY = {  # what differs from the defaults
    "gpu": "synthetic",
    "pair": "toy-pair",
    "dtype": "float32",
    "methods": ["draft", "ngram"],
    "num_draft_tokens": [1, 2, 4, 6],
    "batch_sizes": [1, 2, 4],
    "prompt_tokens": [0, 64],
    "max_new_tokens": [48, 96],
    "num_prompts": 5,
    "correctness_samples": 100,
}
ACCEPTANCE = {("draft", 0.0): 0.68, ("draft", 1.0): 0.55, ("ngram", 0.0): 0.30, ("ngram", 1.0): 0.12}
MADE: dict[str, pd.DataFrame] = {}
TARGET_MS, DRAFT_MS, VERIFY_MS = 20.0, 2.5, 1.2  # a step of the target, a drafted token, each further verified token


def study(**changes: object) -> StudyParams:
    """Valid params, with some keys changed."""
    return validate_params(STUDY | changes, source="synthetic")


def synthetic_rows(params: StudyParams | None = None) -> pd.DataFrame:
    """The whole table of `params`; deterministic, and made once in a process."""
    params = params or study()
    key = params.model_dump_json()
    if key not in MADE:
        MADE[key] = _made_up(params)
    return MADE[key].copy()


def _made_up(params: StudyParams) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    rows = []
    for temperature, (batch, prompt, length), group, repetition in _settings(params):
        setting = {"temperature": temperature, "group": group, "rep": repetition}
        setting |= {"batch": batch, "prompt": prompt, "length": length}
        rows.append(_row(params, rng, method="autoregressive", gamma=None, **setting))
        is_headline = (batch, prompt, length) == _headline(params)
        gammas = params.num_draft_tokens if is_headline else [params.headline_num_draft_tokens]
        rows += [_row(params, rng, method=m, gamma=g, **setting) for m in params.methods for g in gammas]
        if is_headline and params.compare_transformers:
            rows.append(_row(params, rng, method="autoregressive", gamma=None, engine="transformers", **setting))
    return as_read_back(rows)


def step_costs(host_ms: float = 0.0) -> pd.DataFrame:
    """The step costs behind `synthetic_rows`, which has no costs beside target and draft."""
    rows = []
    for tokens in range(1, 10):
        rows.append(("target", tokens, TARGET_MS + VERIFY_MS * (tokens - 1)))
        rows.append(("draft", tokens, DRAFT_MS * tokens))
        rows.append(("ngram", tokens, 0.1 * tokens))
        rows.append(("sampling", tokens, host_ms))
    table = pd.DataFrame(rows, columns=["model", "num_tokens", "ms"])
    return table.assign(batch_size=1, context_tokens=110, temperature=np.nan)


def as_read_back(rows: list[dict[str, object]]) -> pd.DataFrame:
    """The table as `read_results` returns it from disk."""
    buffer = io.BytesIO()
    pq.write_table(as_table(rows), buffer)
    return pd.read_parquet(buffer, dtype_backend="numpy_nullable")


def _headline(params: StudyParams) -> tuple[int, int, int]:
    return params.batch_sizes[0], params.prompt_tokens[0], params.max_new_tokens[0]


def _settings(params: StudyParams):
    batch, prompt, length = _headline(params)
    points = [(b, prompt, length) for b in params.batch_sizes]
    points += [(batch, p, length) for p in params.prompt_tokens[1:]]
    points += [(batch, prompt, n) for n in params.max_new_tokens[1:]]
    for temperature in params.temperatures:
        for point in points:
            for group in range(params.num_prompts):
                for repetition in range(params.repetitions):
                    yield temperature, point, group, repetition


def _row(params, rng, *, method, gamma, temperature, batch, prompt, length, group, rep, engine="specdec_lib"):
    slow = (1 + 0.05 * np.log2(batch)) * rng.uniform(0.97, 1.03) * (1.25 if engine == "transformers" else 1)
    counts = _decode(rng, ACCEPTANCE.get((method, temperature), 0) + 0.02 * (group - 2), gamma, batch, length)
    draft_ms = {"draft": DRAFT_MS, "ngram": 0.1}.get(method, 0) * (gamma or 0)
    verify_ms = VERIFY_MS * (gamma or 0) * (1 + 0.35 * np.log2(batch))
    step_ms = (TARGET_MS + draft_ms + verify_ms) * slow * rng.uniform(0.95, 1.05, len(counts["step_tokens"]))
    ttft = 60 * slow * (1 + (prompt or 32) / 256)
    gaps = np.concatenate([step_ms, np.zeros(max(0, length - 1 - len(step_ms)))])
    setting = [method, engine, gamma, temperature, batch, prompt, length]
    return {
        "run_id": "r", "cell_id": hashlib.sha256(repr(setting).encode()).hexdigest()[:12], "benchmark_version": 1,
        "status": "ok", "error": None, "evidence": "measured", "gpu": params.gpu, "device_name": "synthetic machine",
        "engine": engine, "pair": params.pair, "target_id": "toy-target", "draft_id": "toy-draft", "method": method,
        "verification": "token" if gamma else None, "num_draft_tokens": gamma, "temperature": float(temperature),
        "top_k": params.top_k, "top_p": params.top_p, "dtype": params.dtype, "compiled": False, "batch_size": batch,
        "prompt_tokens": prompt or None, "max_new_tokens": length, "prompt_set": params.prompt_set,
        "repetition": rep, "seed": params.seed, "prompt_group": group, "prompt_ids": f"p{group}",
        "category": f"kind-{group % 2}" if batch == 1 else None,
        "mean_prompt_tokens": float(prompt or 32), "new_tokens": batch * length,
        **{name: counts[name] for name in counts if name != "step_tokens"},
        "step_tokens": counts["step_tokens"], "step_ms": step_ms.tolist(), "ttft_ms": ttft,
        "e2e_ms": ttft + step_ms.sum(), "tpot_ms": step_ms.sum() / (length - 1), "itl_p50_ms": np.quantile(gaps, 0.5),
        "itl_p90_ms": np.quantile(gaps, 0.9), "itl_p99_ms": np.quantile(gaps, 0.99),
        "tokens_per_second": batch * length / (ttft + step_ms.sum()) * 1e3, "peak_memory_allocated_bytes": None,
        "peak_memory_reserved_bytes": None, "device_memory_used_bytes": None,
        "process_peak_rss_bytes": int((1.1 + 0.02 * batch + 0.05 * (method == "draft")) * 2**30),
        "gpu_utilization_percent": None, "energy_joules_per_token": None, "throttled": None,
        "throttle_reasons": None, "sm_clock_mhz": None, "foreign_processes": None, "telemetry_note": None,
        "drifted": None,
        "cost_usd_per_million_tokens": None,
    }  # fmt: skip


def _decode(rng, alpha, gamma, batch, length):
    """Steps of a batch whose rows accept alike, drafts cut where the output ends."""
    if gamma is None:
        return {"step_tokens": [1.0] * (length - 1)}
    accepted_at, tested_at, drafted, step_tokens = np.zeros(gamma, int), np.zeros(gamma, int), 0, []
    remaining = length - 1
    while remaining:
        room = min(gamma, remaining - 1)
        accepted = int((np.cumprod(rng.random(room) < alpha)).sum())
        accepted_at[:accepted] += batch
        tested_at[: min(accepted + 1, room)] += batch
        drafted += batch * room
        step_tokens.append(float(accepted + 1))
        remaining -= accepted + 1
    return {
        "steps": batch * len(step_tokens), "drafted_tokens": drafted, "tested_tokens": int(tested_at.sum()),
        "accepted_tokens": int(accepted_at.sum()), "accepted_by_position": accepted_at.tolist(),
        "tested_by_position": tested_at.tolist(), "step_tokens": step_tokens,
    }  # fmt: skip


def synthetic_profile(params: StudyParams | None = None, prompts: int = 6) -> pd.DataFrame:
    """The expected acceptance behind `synthetic_rows`, on other prompts of the same two kinds."""
    params = params or study()
    lines = []
    for temperature in params.temperatures:
        for method in params.methods:
            for gamma in params.num_draft_tokens:
                for number in range(prompts):
                    rate = ACCEPTANCE.get((method, float(temperature)), 0) + 0.02 * (number - (prompts - 1) / 2)
                    kept = rate ** np.arange(gamma + 1)
                    counts = {"steps": 20.0, "tokens": 20 * kept.sum(), "block_steps": 20.0}
                    counts |= {
                        "block_tokens": 20.4 * kept.sum(),
                        "copied": 0.0,
                        "rejected_first": 8.0,
                        "saved_by_second": 3.0,
                    }
                    counts |= {"tested_by_position": list(20 * kept[:-1]), "accepted_by_position": list(20 * kept[1:])}
                    facts = {"method": method, "temperature": float(temperature), "num_draft_tokens": gamma}
                    facts |= {"category": f"kind-{number % 2}", "prompt_id": f"unseen-{number}"}
                    lines.append(facts | counts)
    return pd.DataFrame(lines)
