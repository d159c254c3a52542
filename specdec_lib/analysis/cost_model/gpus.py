"""What the cost model says of GPUs that nobody here has run on. Every number is predicted and has a band.

The band is the least and the most over the corners of the assumptions of `data_sheet` and of the acceptance: it is no
confidence interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from specdec_lib.analysis.cost_model.data_sheet import OURS, DataSheet, Range, StepCosts, corners, step_costs
from specdec_lib.analysis.metrics import OWN_ENGINE
from specdec_lib.analysis.theory import expected_tokens
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import Gpu, Price, load_gpus, usd_per_million_tokens
from specdec_lib.hardware.costs import cache_bytes, weights_kept
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.study.cells import NATURAL_PROMPT

# Leviathan et al. 2022 Table 3: LaMDA-137B with drafts of 100M to 8B, temperature 0 and 1.
ACCEPTANCE = Range(0.57, 0.66, 0.75)
POWER_SHARE = Range(0.50, 0.75, 1.00)  # of the power limit while decoding


def predict(params: StudyParams, price: Price, acceptance: Range = ACCEPTANCE) -> pd.DataFrame:
    """One line per batch size, prompt length and gamma (and the baseline) of a GPU preset; every number predicted.

    Columns `*_low` and `*_high` are the band. The acceptance is given, not measured, and the output length the first.
    As in measured lines, throughput, dollars and joules are of whole calls, the prefills of target and draft included.
    ValueError if the price is of no GPU, or nothing was counted for its pair.
    """
    gpus = load_gpus()
    if price.gpu not in gpus:
        raise ValueError(f"a price of {price.gpu!r} is of no GPU: predictions need a product of hardware/gpus.yaml")
    if params.pair not in PRESETS:
        raise ValueError(f"nothing is known of the size of pair {params.pair!r}: choose one of {', '.join(PRESETS)}")
    points = itertools.product(params.batch_sizes, params.prompt_tokens, [0, *params.num_draft_tokens])
    lines = [_line(params, price.usd_per_hour, gpus[price.gpu], acceptance, *point) for point in points]
    return pd.DataFrame(lines).assign(gpu=params.gpu, product=price.gpu, pair=params.pair, dtype=params.dtype)


def _line(
    params: StudyParams, usd_per_hour: float, gpu: Gpu, acceptance: Range, batch: int, prompt: int, gamma: int
) -> dict[str, object]:
    """One setting, halfway through its output; gamma 0 is the baseline."""
    pair = PRESETS[params.pair]
    read, length = prompt or NATURAL_PROMPT, params.max_new_tokens[0]
    place: dict[str, Any] = {"batch": batch, "num_draft_tokens": max(gamma, 1), "prompt": read}
    machines = [DataSheet(gpu, corner, params.dtype) for corner in corners(OURS)]
    steps = [step_costs(machine, *pair, context=read + length / 2, **place) for machine in machines]
    tokens = [expected_tokens(rate, gamma) for rate in acceptance]

    def seconds(step: StepCosts, tokens_per_pass: float) -> float:
        """Of an output token."""
        return step.step / tokens_per_pass if gamma else step.baseline

    def throughput(step: StepCosts, tokens_per_pass: float) -> float:
        """Tokens per second of a whole call, as `DecodeResult.tokens_per_second`."""
        prefill = step.target_prefill + (step.draft_prefill if gamma else 0.0)
        return batch * length / (prefill + (length - 1) * seconds(step, tokens_per_pass))

    def band(name: str, value: Callable[[StepCosts, float], float]) -> dict[str, float]:
        """A value in the middle of everything, and the least and most in any corner."""
        others = [value(step, each) for step in steps for each in tokens]
        return {f"{name}_low": min(others), name: value(steps[0], tokens[1]), f"{name}_high": max(others)}

    rates = band("tokens_per_second", throughput)
    slowest_first = list(rates.values())[::-1]  # the most tokens per second are the fewest dollars and joules for each
    joules = [gpu.tdp_watts * share / rate for share, rate in zip(POWER_SHARE, slowest_first, strict=True)]
    loaded = pair if gamma else pair[:1]
    memory = sum(_memory(model, params.dtype, batch, read + length) for model in loaded)
    return {
        "engine": OWN_ENGINE, "method": "draft" if gamma else AUTOREGRESSIVE, "num_draft_tokens": gamma or None,
        "batch_size": batch, "prompt_tokens": prompt or None, "max_new_tokens": length, "evidence": "predicted",
        "acceptance_rate": acceptance.value if gamma else None,
        "memory_bytes": memory, "fits": memory < gpu.memory_gb * 1e9,
        **band("tpot_ms", lambda *corner: 1e3 * seconds(*corner)),
        **band("speedup", lambda step, each: step.speedup(each) if gamma else 1.0),
        **rates,
        **_columns("usd_per_million_tokens", [usd_per_million_tokens(rate, usd_per_hour) for rate in slowest_first]),
        **_columns("energy_joules_per_token", joules),
    }  # fmt: skip


def _columns(name: str, band: Sequence[float]) -> dict[str, float]:
    return dict(zip((f"{name}_low", name, f"{name}_high"), band, strict=True))


def _memory(model: str, dtype: str, batch: int, tokens: int) -> float:
    """Bytes of a model's weights and of its cache."""
    return weights_kept(model, dtype) + cache_bytes(model, batch, tokens)
