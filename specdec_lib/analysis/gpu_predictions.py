"""What the cost model says of GPUs that nobody here has run on. Every number is predicted and has a band.

The data sheet gives bandwidth and dense operations; what share of them decoding reaches, and what starting a kernel
costs, are assumptions with a range. The band is the least and the most that any corner of these ranges and of the
acceptance gives: it is no confidence interval. On CUDA the library captures its steps in graphs, and is predicted so;
what it would be if the host started one kernel after another, as with `compiled=False`, is a prediction of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import pandas as pd

from specdec_lib.analysis.cost_model import BYTES, Machine, SpeculativeStep, speculative_step
from specdec_lib.analysis.theory import expected_tokens
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import Gpu, Price, load_gpus, usd_per_million_tokens
from specdec_lib.models.presets import PRESETS
from specdec_lib.models.shape import ModelShape, known_shape
from specdec_lib.study.cells import NATURAL_PROMPT

ALL_REDUCE_SECONDS = 10e-6  # of a small tensor over NVLink; two in each layer of a model that is split


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


class Engine(NamedTuple):
    """What the host starts, while earlier kernels run: the device waits where that takes longer than its work."""

    kernels_per_layer: float
    seconds: Range  # to start one


GAPS_PER_LAYER = 10  # between kernels on the device, however they were started
GAP_SECONDS = Range(1.5e-6, 2.5e-6, 4e-6)
ENGINES = {
    "graph": Engine(0, Range(0, 0, 0)),  # a captured graph is started at once
    "eager": Engine(25, Range(6e-6, 10e-6, 16e-6)),  # one kernel after another
}
OURS = {"graph": "specdec_lib", "eager": "specdec_lib, one kernel after another"}


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


def data_sheet_machine(gpu: Gpu, corner: Corner, *, dtype: str, engine: str, num_gpus: int = 1) -> Machine:
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


def predict(
    params: StudyParams, price: Price, acceptance: Range = ACCEPTANCE, start: Literal["eager", "graph"] = "graph"
) -> pd.DataFrame:
    """One line per batch size, prompt length and gamma (and the baseline) of a GPU preset; every number predicted.

    Columns `*_low` and `*_high` are the band. The acceptance is given, not measured, and the output length the first.
    As in measured lines, throughput, dollars and joules are of whole calls, the prefills of target and draft included.

    Args:
        start: how the library starts its kernels: "graph" is how it does.

    Raises:
        ValueError: the price is of no GPU, or the pair's geometry is unknown.
    """
    gpus = load_gpus()
    if price.gpu not in gpus:
        raise ValueError(f"a price of {price.gpu!r} is of no GPU: predictions need a product of hardware/gpus.yaml")
    if params.pair not in PRESETS:
        known = ", ".join(PRESETS)
        raise ValueError(f"nothing is known of the size of pair {params.pair!r}: choose one of {known}")
    target, draft = (known_shape(name) for name in PRESETS[params.pair])
    points = itertools.product(params.batch_sizes, params.prompt_tokens, [0, *params.num_draft_tokens])
    lines = [_line(params, price, gpus[price.gpu], target, draft, acceptance, start, *point) for point in points]
    return pd.DataFrame(lines)


def _line(
    params: StudyParams,
    price: Price,
    gpu: Gpu,
    target: ModelShape,
    draft: ModelShape,
    acceptance: Range,
    start: str,
    batch: int,
    prompt: int,
    gamma: int,
) -> dict[str, object]:
    length, read = params.max_new_tokens[0], prompt or NATURAL_PROMPT
    shapes = (gpu, params.dtype, target, draft)
    steps = _steps(*shapes, batch=batch, gamma=max(gamma, 1), prompt=read, length=length, start=start)
    rates = acceptance if gamma else Range(0, 0, 0)
    loaded = (target, draft) if gamma else (target,)
    memory = sum(_memory(shape, params.dtype, batch, read + length) for shape in loaded)
    line: dict[str, object] = {
        "gpu": params.gpu, "product": price.gpu, "pair": params.pair, "dtype": params.dtype, "evidence": "predicted",
        "engine": OURS[start], "method": "draft" if gamma else "autoregressive",
        "num_draft_tokens": gamma or None, "batch_size": batch, "prompt_tokens": prompt or None,
        "max_new_tokens": length, "acceptance_rate": acceptance.value if gamma else None,
        "memory_bytes": memory, "fits": memory < gpu.memory_gb * 1e9,
    }  # fmt: skip
    tpot = _band(steps, rates, gamma, lambda step, tokens: (step.step / tokens if gamma else step.baseline) * 1e3)
    line |= _columns("tpot_ms", tpot)
    line |= _columns("speedup", _band(steps, rates, gamma, lambda step, tokens: step.speedup(tokens) if gamma else 1))
    throughput = _band(steps, rates, gamma, lambda step, tokens: _throughput(step, batch, length, tokens * (gamma > 0)))
    line |= _columns("tokens_per_second", throughput)
    usd = [usd_per_million_tokens(rate, price.usd_per_hour) for rate in reversed(throughput)]
    line |= _columns("usd_per_million_tokens", Range(*usd))
    joules = [gpu.tdp_watts * share / rate for share, rate in zip(POWER_SHARE, reversed(throughput), strict=True)]
    return line | _columns("joules_per_token", Range(*joules))


def _steps(
    gpu: Gpu,
    dtype: str,
    target: ModelShape,
    draft: ModelShape,
    *,
    batch: int,
    gamma: int,
    prompt: int,
    length: int,
    start: str,
) -> list[SpeculativeStep]:
    """The pieces of a step halfway through the output, in every corner of the assumptions, the middle first."""
    return [
        speculative_step(
            data_sheet_machine(gpu, corner, dtype=dtype, engine=start),
            target,
            draft,
            batch=batch,
            num_draft_tokens=gamma,
            context=prompt + length / 2,
            prompt=prompt,
        )
        for corner in corners(start)
    ]


def _throughput(step: SpeculativeStep, batch: int, length: int, tokens_per_pass: float) -> float:
    """Tokens per second of a whole call, as `DecodeResult.tokens_per_second`; without speculation if 0 a pass."""
    if tokens_per_pass:
        seconds = step.target_prefill + step.draft_prefill + (length - 1) * step.step / tokens_per_pass
    else:
        seconds = step.target_prefill + (length - 1) * step.baseline
    return batch * length / seconds


def _band(
    steps: Sequence[SpeculativeStep],
    acceptance: Range,
    gamma: int,
    value: Callable[[SpeculativeStep, float], float],
) -> Range:
    """The value in the middle of everything, and the least and most in any corner."""
    middle = value(steps[0], expected_tokens(acceptance.value, gamma))
    others = [value(step, expected_tokens(rate, gamma)) for step in steps for rate in acceptance]
    return Range(min(others), middle, max(others))


def _columns(name: str, band: Range) -> dict[str, float]:
    return {f"{name}_low": band.low, name: band.value, f"{name}_high": band.high}


def _memory(shape: ModelShape, dtype: str, batch: int, tokens: int) -> float:
    """Bytes of a model's weights and of its cache."""
    cache = 2.0 * batch * tokens * shape.key_values_per_token()
    return BYTES[dtype] * shape.weights_kept() + cache


def break_even_prices(
    params: StudyParams, cheaper: str, dearer: str, acceptance_rates: Sequence[float], batch: int = 1
) -> pd.DataFrame:
    """The ratio of hourly prices at which two products cost the same per token, by acceptance; predicted.

    Below the ratio the dearer product is the cheaper per token. One line for each acceptance rate and for decoding
    without speculation (`acceptance_rate` null), each product at its best gamma of the params.
    """
    return pd.DataFrame(list(_break_even(params, cheaper, dearer, acceptance_rates, batch)))


def _break_even(
    params: StudyParams, cheaper: str, dearer: str, acceptance_rates: Sequence[float], batch: int
) -> Iterator[dict[str, object]]:
    gpus = load_gpus()
    target, draft = (known_shape(name) for name in PRESETS[params.pair])
    prompt, length = params.prompt_tokens[0] or NATURAL_PROMPT, params.max_new_tokens[0]
    at = {"batch": batch, "prompt": prompt, "length": length}

    def rates(product: str, acceptance: float | None) -> list[float]:
        """Tokens per second in every corner, the middle first."""
        best: list[float] = []
        for gamma in params.num_draft_tokens:
            steps = _steps(gpus[product], params.dtype, target, draft, gamma=gamma, start="graph", **at)
            if acceptance is None:
                return [_throughput(step, batch, length, 0) for step in steps]
            each = [_throughput(step, batch, length, expected_tokens(acceptance, gamma)) for step in steps]
            best = each if not best or each[0] > best[0] else best
        return best

    for acceptance in [None, *acceptance_rates]:
        fast, slow = rates(dearer, acceptance), rates(cheaper, acceptance)
        ratios = [a / b for a, b in zip(fast, slow, strict=True)]  # the same corner for both: what errs, errs alike
        band = Range(min(ratios), ratios[0], max(ratios))
        facts = {"cheaper": cheaper, "dearer": dearer, "batch_size": batch, "acceptance_rate": acceptance}
        yield facts | _columns("price_ratio", band) | {"evidence": "predicted"}


def one_layer(shape: ModelShape) -> ModelShape:
    """A draft of one layer of the target and its output layer, as EAGLE's."""
    return replace(shape, name="layer", layer_weights=shape.layer_weights // shape.num_layers, num_layers=1)
