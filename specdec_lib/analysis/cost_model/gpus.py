"""What the cost model says of GPUs that nobody here has run on. Every number is predicted and has a band.

The data sheet gives bandwidth and dense operations. What share of them decoding reaches, and what starting a kernel
costs, are assumptions with a range. The band is the least and the most over the corners of these ranges and of the
acceptance: it is no confidence interval. On CUDA the library captures its steps in graphs, and is predicted so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from specdec_lib.analysis.cost_model.machine import BYTES, Machine, StepCosts, step_costs
from specdec_lib.analysis.metrics import OWN_ENGINE
from specdec_lib.analysis.theory import expected_tokens
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import Gpu, Price, load_gpus, usd_per_million_tokens
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.models.shape import ModelShape, known_shape
from specdec_lib.study.cells import NATURAL_PROMPT


class Range(NamedTuple):
    """A guess with the least and the most that it may be."""

    low: float
    value: float
    high: float


# Leviathan et al. 2022 Table 3: LaMDA-137B with drafts of 100M to 8B, temperature 0 and 1.
ACCEPTANCE = Range(0.57, 0.66, 0.75)
BANDWIDTH_SHARE = Range(0.70, 0.80, 0.90)  # of the data sheet; a plain copy reaches 0.90 on an H100 and an H200
OPERATIONS_SHARE = Range(0.60, 0.70, 0.81)  # a large bf16 product reaches 0.81 on an H100
POWER_SHARE = Range(0.50, 0.75, 1.00)  # of the power limit while decoding
GAPS_PER_LAYER = 10  # between kernels on the device, however they were started
GAP_SECONDS = Range(1.5e-6, 2.5e-6, 4e-6)
ALL_REDUCE_SECONDS = 10e-6  # of a small tensor over NVLink; two in each layer of a model that is split


class Engine(NamedTuple):
    """What the host starts while earlier kernels run; the longer of the two counts."""

    kernels_per_layer: float
    seconds: Range  # to start one


ENGINES = {  # how the engine of a published result starts its kernels; ours is "graph"
    "graph": Engine(0, Range(0, 0, 0)),  # a captured graph is started at once
    "eager": Engine(25, Range(6e-6, 10e-6, 16e-6)),  # one kernel after another
}


@dataclass(frozen=True)
class Corner:
    """One choice within every range."""

    bandwidth_share: float
    operations_share: float
    gap_seconds: float
    start_seconds: float


def corners(engine: str) -> list[Corner]:
    """The middle of all ranges first, then their corners; what starts cost is low or high on device and host alike."""
    starts = list(zip(GAP_SECONDS, ENGINES[engine].seconds, strict=True))
    ends = itertools.product(BANDWIDTH_SHARE[::2], OPERATIONS_SHARE[::2], starts[::2])
    middle = Corner(BANDWIDTH_SHARE.value, OPERATIONS_SHARE.value, *starts[1])
    return [middle, *(Corner(read, operations, *start) for read, operations, start in ends)]


def data_sheet_machine(gpu: Gpu, corner: Corner, *, dtype: str, engine: str = "graph", num_gpus: int = 1) -> Machine:
    """A GPU, or several that split every matrix, by the data sheet and one choice of assumptions."""
    read = gpu.bandwidth_tb_per_s * 1e12 * corner.bandwidth_share * num_gpus
    operations = gpu.bf16_tflops * 1e12 * corner.operations_share * num_gpus
    split = 2 * ALL_REDUCE_SECONDS / GAPS_PER_LAYER if num_gpus > 1 else 0.0

    def matrix_seconds(shape: ModelShape, rows: int) -> float:
        reading = shape.bytes_read(rows, BYTES[dtype]) / read
        return max(reading, 2 * shape.weights_multiplied() * rows / operations)

    return Machine(
        name=gpu.product,
        matrix_seconds=matrix_seconds,
        read_bytes_per_second=read,
        operations_per_second=operations,
        bytes_per_number=2.0,
        layer_seconds=(corner.gap_seconds + split) * GAPS_PER_LAYER,
        host_layer_seconds=corner.start_seconds * ENGINES[engine].kernels_per_layer,
    )


def predict(params: StudyParams, price: Price, acceptance: Range = ACCEPTANCE) -> pd.DataFrame:
    """One line per batch size, prompt length and gamma (and the baseline) of a GPU preset; every number predicted.

    Columns `*_low` and `*_high` are the band. The acceptance is given, not measured, and the output length the first.
    As in measured lines, throughput, dollars and joules are of whole calls, the prefills of target and draft included.
    ValueError if the price is of no GPU, or the pair's geometry is unknown.
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
    pair = [known_shape(name) for name in PRESETS[params.pair]]
    read, length = prompt or NATURAL_PROMPT, params.max_new_tokens[0]
    place: dict[str, Any] = {"batch": batch, "num_draft_tokens": max(gamma, 1), "prompt": read}
    machines = [data_sheet_machine(gpu, corner, dtype=params.dtype) for corner in corners("graph")]
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
    memory = sum(_memory(shape, params.dtype, batch, read + length) for shape in loaded)
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


def _memory(shape: ModelShape, dtype: str, batch: int, tokens: int) -> float:
    """Bytes of a model's weights and of its cache."""
    cache = 2.0 * batch * tokens * shape.key_values_per_token()
    return shape.bytes_kept(BYTES[dtype]) + cache
