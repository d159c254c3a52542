"""What the cost model says of GPUs that nobody here has run on. Every number is predicted and has a band.

The data sheet gives bandwidth and dense operations. What share of them decoding reaches, and what starting a kernel
costs, are assumptions with a range. The band is the least and the most over the corners of these ranges and of the
acceptance: it is no confidence interval. On CUDA the library captures its steps in graphs, and is predicted so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from specdec_lib.analysis.cost_model.machine import BYTES, Machine, StepCosts, step_costs
from specdec_lib.analysis.metrics import OWN_ENGINE
from specdec_lib.analysis.theory import expected_tokens
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import Gpu, Price, load_gpus, usd_per_million_tokens
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.models.presets import PRESETS
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
        reading = shape.weights_read(rows) * BYTES[dtype] / read
        return max(reading, 2 * shape.weights_multiplied() * rows / operations)

    return Machine(
        name=gpu.product,
        matrix_seconds=matrix_seconds,
        read_bytes_per_second=read,
        operations_per_second=operations,
        bytes_per_number=2.0,
        call_seconds=corner.gap_seconds + split,
        calls_per_layer=GAPS_PER_LAYER,
        host_layer_seconds=corner.start_seconds * ENGINES[engine].kernels_per_layer,
    )


@dataclass(frozen=True)
class Point:
    """A setting with its steps in every corner of the assumptions, the middle first; gamma 0 is the baseline."""

    steps: Sequence[StepCosts]
    num_draft_tokens: int
    batch: int
    length: int

    def tpot_ms(self, step: StepCosts, tokens_per_pass: float) -> float:
        """Milliseconds per output token."""
        return (step.step / tokens_per_pass if self.num_draft_tokens else step.baseline) * 1e3

    def speedup(self, step: StepCosts, tokens_per_pass: float) -> float:
        """Speedup over the baseline."""
        return step.speedup(tokens_per_pass) if self.num_draft_tokens else 1.0

    def throughput(self, step: StepCosts, tokens_per_pass: float) -> float:
        """Tokens per second of a whole call, as `DecodeResult.tokens_per_second`."""
        prefill = step.target_prefill + (step.draft_prefill if self.num_draft_tokens else 0.0)
        return self.batch * self.length / (prefill + (self.length - 1) * self.tpot_ms(step, tokens_per_pass) / 1e3)

    def band(self, value: Callable[[StepCosts, float], float], acceptance: Range) -> Range:
        """A value in the middle of everything, and the least and most in any corner."""
        tokens = [expected_tokens(rate, self.num_draft_tokens) for rate in acceptance]
        others = [value(step, each) for step in self.steps for each in tokens]
        return Range(min(others), value(self.steps[0], tokens[1]), max(others))


def predict(params: StudyParams, price: Price, acceptance: Range = ACCEPTANCE) -> pd.DataFrame:
    """One line per batch size, prompt length and gamma (and the baseline) of a GPU preset; every number predicted.

    Columns `*_low` and `*_high` are the band. The acceptance is given, not measured, and the output length the first.
    As in measured lines, throughput, dollars and joules are of whole calls, the prefills of target and draft included.

    Raises:
        ValueError: the price is of no GPU, or the pair's geometry is unknown.
    """
    gpus = load_gpus()
    if price.gpu not in gpus:
        raise ValueError(f"a price of {price.gpu!r} is of no GPU: predictions need a product of hardware/gpus.yaml")
    pair = _pair_shapes(params.pair)
    points = itertools.product(params.batch_sizes, params.prompt_tokens, [0, *params.num_draft_tokens])
    return pd.DataFrame([_line(params, price, gpus[price.gpu], pair, acceptance, *point) for point in points])


def break_even_prices(
    params: StudyParams, cheaper: str, dearer: str, acceptance_rates: Sequence[float], batch: int = 1
) -> pd.DataFrame:
    """The ratio of hourly prices at which two products cost the same per token, by acceptance; predicted.

    Below the ratio the dearer product is the cheaper per token. One line for each acceptance rate and for decoding
    without speculation (`acceptance_rate` null), each product at its best gamma of the params.
    """
    gpus, pair = load_gpus(), _pair_shapes(params.pair)
    prompt = params.prompt_tokens[0] or NATURAL_PROMPT

    def rates(product: str, acceptance: float | None) -> list[float]:
        """Tokens per second in every corner, the middle first."""
        gammas = [0] if acceptance is None else params.num_draft_tokens
        points = [_point(params, gpus[product], pair, batch, prompt, gamma) for gamma in gammas]
        each = [
            [point.throughput(step, expected_tokens(acceptance or 0, point.num_draft_tokens)) for step in point.steps]
            for point in points
        ]
        return max(each, key=lambda corners: corners[0])

    lines: list[dict[str, object]] = []
    for acceptance in [None, *acceptance_rates]:
        # The same corner for both products: what is wrong for one is wrong for the other.
        ratios = [a / b for a, b in zip(rates(dearer, acceptance), rates(cheaper, acceptance), strict=True)]
        facts = {"cheaper": cheaper, "dearer": dearer, "batch_size": batch, "acceptance_rate": acceptance}
        lines.append(facts | _columns("price_ratio", Range(min(ratios), ratios[0], max(ratios))))
    return pd.DataFrame(lines).assign(evidence="predicted")


def _pair_shapes(pair: str) -> tuple[ModelShape, ModelShape]:
    """Target and draft of a preset pair."""
    if pair not in PRESETS:
        raise ValueError(f"nothing is known of the size of pair {pair!r}: choose one of {', '.join(PRESETS)}")
    target, draft = PRESETS[pair]
    return known_shape(target), known_shape(draft)


def _point(
    params: StudyParams, gpu: Gpu, pair: tuple[ModelShape, ModelShape], batch: int, prompt: int, gamma: int
) -> Point:
    """The steps halfway through the output."""
    length = params.max_new_tokens[0]
    machines = [data_sheet_machine(gpu, corner, dtype=params.dtype) for corner in corners("graph")]
    steps = [
        step_costs(
            machine, *pair, batch=batch, num_draft_tokens=max(gamma, 1), context=prompt + length / 2, prompt=prompt
        )
        for machine in machines
    ]
    return Point(steps, gamma, batch, length)


def _line(
    params: StudyParams,
    price: Price,
    gpu: Gpu,
    pair: tuple[ModelShape, ModelShape],
    acceptance: Range,
    batch: int,
    prompt: int,
    gamma: int,
) -> dict[str, object]:
    read = prompt or NATURAL_PROMPT
    point = _point(params, gpu, pair, batch, read, gamma)
    throughput = point.band(point.throughput, acceptance)
    slowest_first = throughput[::-1]  # the most tokens per second are the fewest dollars and joules for each
    joules = [gpu.tdp_watts * share / rate for share, rate in zip(POWER_SHARE, slowest_first, strict=True)]
    loaded = pair if gamma else pair[:1]
    memory = sum(_memory(shape, params.dtype, batch, read + point.length) for shape in loaded)
    return {
        "gpu": params.gpu, "product": price.gpu, "pair": params.pair, "dtype": params.dtype, "evidence": "predicted",
        "engine": OWN_ENGINE, "method": "draft" if gamma else AUTOREGRESSIVE, "num_draft_tokens": gamma or None,
        "batch_size": batch, "prompt_tokens": prompt or None, "max_new_tokens": point.length,
        "acceptance_rate": acceptance.value if gamma else None,
        "memory_bytes": memory, "fits": memory < gpu.memory_gb * 1e9,
        **_columns("tpot_ms", point.band(point.tpot_ms, acceptance)),
        **_columns("speedup", point.band(point.speedup, acceptance)),
        **_columns("tokens_per_second", throughput),
        **_columns("usd_per_million_tokens", [usd_per_million_tokens(r, price.usd_per_hour) for r in slowest_first]),
        **_columns("energy_joules_per_token", joules),
    }  # fmt: skip


def _columns(name: str, band: Sequence[float]) -> dict[str, float]:
    return dict(zip((f"{name}_low", name, f"{name}_high"), band, strict=True))


def _memory(shape: ModelShape, dtype: str, batch: int, tokens: int) -> float:
    """Bytes of a model's weights and of its cache."""
    cache = 2.0 * batch * tokens * shape.key_values_per_token()
    return BYTES[dtype] * shape.weights_kept() + cache
