"""A check of a machine in about a minute: is it the one the params are for, is decoding exact on it, does it run?

Every item gives a verdict; one that fails does not keep the others from running. The models need no hub: toys and a
tiny Llama for exactness, the embedded pair for the sweep. They run on one device, also where the study's target is
spread over several.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.decoding.captured_loop import graph_facts
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.verification import Verify
from specdec_lib.exactness.adversaries import ENGINE_SETTINGS, PROMPTS, engine_pairs, enumeration_line
from specdec_lib.exactness.certify import GAMMA, greedy_prompts, short_prompts
from specdec_lib.exactness.greedy import greedy_agreement
from specdec_lib.exactness.joint_law import decide, put_to_test
from specdec_lib.exactness.mutants import without_residual
from specdec_lib.exactness.subjects import engine_sampler
from specdec_lib.machine.environment import check_device, check_product, device_name
from specdec_lib.machine.nvml import NvmlUnavailableError, open_device
from specdec_lib.machine.telemetry import Telemetry
from specdec_lib.methods import AUTOREGRESSIVE, make_proposer
from specdec_lib.models.pair import TOY, Pair, load_pair
from specdec_lib.models.tensor_parallel import check_devices
from specdec_lib.study.columns import latency_columns

PASS, FAIL, SKIP = "pass", "fail", "skipped"
EMBEDDED = "smollm2-135m-embedded"
SAMPLES = 4000  # continuations of each prompt of a toy
NEW_TOKENS, REPETITIONS = 64, 3  # of the sweep
# What a driver must say of a device, and the name under which it gives the reason if it does not.
READINGS = {"power_limit_watts": "power limit", "sm_clock_mhz": "clock", "memory_bytes": "memory", "driver": "driver"}
COLUMNS = ("energy_joules_per_token", "gpu_utilization_percent", "throttled", "foreign_processes")


@dataclass(frozen=True)
class Verdict:
    """What one item found."""

    item: str
    outcome: str  # PASS, FAIL or SKIP
    detail: str
    seconds: float


class Skipped(Exception):  # noqa: N818 - no error
    """An item that cannot be checked on this machine, and why."""


def check_machine(params: StudyParams) -> Iterator[Verdict]:
    """Check the machine for a study, item by item; each verdict comes as soon as it is known."""
    items: dict[str, Callable[[], str]] = {
        "device": lambda: _device(params),
        "telemetry": lambda: _telemetry(params),
        "greedy exactness": lambda: _greedy(params),
        "sampled exactness": lambda: _sampled(params),
        "enumerated exactness": lambda: _enumerated(params),
        f"{params.dtype}, model as it is": lambda: _sweep(params, compiled=False),
        f"{params.dtype}, compiled": lambda: _sweep(params, compiled=True),
    }
    for item, check in items.items():
        started = time.monotonic()
        try:
            outcome, detail = PASS, check()
        except Skipped as reason:
            outcome, detail = SKIP, str(reason)
        except Exception as error:  # noqa: BLE001 - a verdict for each item, whatever goes wrong
            outcome, detail = FAIL, f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Verdict(item, outcome, detail, time.monotonic() - started)


def _device(params: StudyParams) -> str:
    """The device by name, and for a GPU that it is the product which the price is of."""
    check_device(params)
    check_devices(params.tensor_parallel, params.device)
    name = f"{device_name(params.device)}, {params.num_devices} in use"
    if params.device != "cuda":
        return name
    facts = open_device().facts()
    assert facts["product"] is not None, facts["missing"]
    check_product(params, facts["product"])
    limits = f"{facts['power_limit_watts']} W of {facts['default_power_limit_watts']} W by default"
    return f"{name}: {facts['product']}, {limits}"


def _telemetry(params: StudyParams) -> str:
    """The driver's readings while the device is busy."""
    if params.device != "cuda":
        raise Skipped(f"device is {params.device}, which has no NVIDIA driver to ask")
    try:
        facts = open_device().facts()
    except NvmlUnavailableError as error:
        raise Skipped(str(error)) from None
    with Telemetry(params.device) as telemetry:
        x, end = torch.ones(2048, 2048, device=params.device), time.monotonic() + 1.5
        while time.monotonic() < end:
            (x @ x).sum().item()
    return judge_telemetry(facts, telemetry.columns(new_tokens=1), torch.cuda.mem_get_info()[1])


def judge_telemetry(facts: dict[str, Any], columns: dict[str, Any], memory_bytes: int) -> str:
    """Compare readings with what they can be; returns a summary.

    Raises:
        AssertionError: naming the reading that makes no sense, or is null without a reason.
    """
    unexplained = [name for name, reading in READINGS.items() if not facts[name] and reading not in facts["missing"]]
    if not columns["telemetry_note"]:
        unexplained += [name for name in COLUMNS if columns[name] is None]
    assert not unexplained, f"null without reason: {', '.join(unexplained)}"
    ratio = (facts["memory_bytes"] or memory_bytes) / memory_bytes
    assert 0.85 < ratio < 1.15, f"driver and PyTorch see different memory: {ratio:.2f}"
    if facts["sm_clock_mhz"] and facts["max_sm_clock_mhz"]:
        assert facts["sm_clock_mhz"] <= facts["max_sm_clock_mhz"] * 1.01, "the clock is above its maximum"
    joules = columns["energy_joules_per_token"]
    assert joules is None or joules > 0, "the energy counter stands still"
    assert not columns["foreign_processes"], f"{columns['foreign_processes']} other process(es) compute on the device"
    assert not columns["throttled"], f"the device is throttled: {columns['throttle_reasons']}"
    energy = "no energy counter" if joules is None else f"{joules:.0f} J in 1.5 s"
    return f"driver {facts['driver']}, {energy}; {columns['telemetry_note'] or 'nothing missing'}"


def _greedy(params: StudyParams) -> str:
    """Greedy speculative output in float32 equals the baseline's, on toys and on the sweep's pair."""
    agreed = []
    for name in dict.fromkeys((TOY, _pair_name(params))):
        pair = load_pair(name, device=params.device, dtype="float32")
        proposers = {method: make_proposer(method, pair) for method in params.methods}
        given: dict[str, Any] = {"num_draft_tokens": (1, 4), "max_new_tokens": 24, "verification": params.verification}
        table, divergences = greedy_agreement(pair.target, proposers, greedy_prompts(pair, params)[:2], **given)
        differ = table[table["equal_rows"] < table["rows"]]
        assert differ.empty, f"{name}: greedy output differs from token {divergences['position'].min()} on"
        agreed.append(f"{name} {table['rows'].sum()} rows")
    return f"equal token for token: {', '.join(agreed)}"


def _sampled(params: StudyParams) -> str:
    """Tests find no bias in the sampled output of a toy, and find that of a sampler which is wrong."""
    pair = load_pair(TOY, device=params.device)
    given: dict[str, Any] = {"sampling": SamplingConfig(), "length": GAMMA + 2}
    samplers: list[tuple[str, str | Verify]] = [(method, params.verification) for method in params.methods]
    tests = []
    for method, rule in [*samplers, (params.methods[0], without_residual)]:
        proposer = make_proposer(method, pair)
        options: dict[str, Any] = {"num_draft_tokens": GAMMA, "batch_size": 1024, "verification": rule}
        sample = engine_sampler(pair.target, proposer, **given, **options)
        prompts = short_prompts(pair, params)
        each, _ = put_to_test(sample, pair.target, prompts, **given, samples=SAMPLES, seed=params.seed)
        tests.append(each.assign(method=method, sound=rule is not without_residual))
    table = decide(pd.concat(tests, ignore_index=True))
    biased = table[table["sound"] & table["rejected"]]
    assert biased.empty, f"{', '.join(biased['method'])}: the output is not the target's"
    wrong = table[~table["sound"]]
    assert wrong["rejected"].any(), "the sampler without a residual was not noticed"
    return f"{len(samplers)} sound samplers pass, the wrong one is rejected (p = {wrong['p_value'].min():.1g})"


def _enumerated(params: StudyParams) -> str:
    """On every path the output of a tiny Llama has the target's law, as it is and through what this device compiles."""
    engines = ("eager", "inductor" if params.device == "cuda" else "kernels")
    lines = [
        enumeration_line(pair, make_proposer(params.methods[0], pair), PROMPTS, gamma, sampling, params.verification)
        for pair in engine_pairs(params.device, engines)
        for gamma, sampling in ENGINE_SETTINGS
    ]
    table = pd.DataFrame(lines)
    off = table[(table["largest_error"] > table["tolerance"]) | (table["unexplained"] > 0)]
    assert off.empty, f"another law than the target's through {' and '.join(off['path'].unique())}"
    return f"{table['paths'].sum():,} paths through {' and '.join(f'({path})' for path in table['path'].unique())}"


def _sweep(params: StudyParams, *, compiled: bool) -> str:
    """A short sweep: time per token of the baseline and of the headline method, interleaved, and the peak of memory."""
    method, dtype = params.methods[0], "float32" if params.pair == TOY else params.dtype
    pair = load_pair(_pair_name(params), device=params.device, dtype=dtype, compiled=compiled)
    if compiled and pair.target.engine == "eager" and graph_facts(pair.target).startswith("none"):
        raise Skipped(f"nothing is compiled for {pair.name} on {params.device}: both runs would be the same")
    times: dict[str, list[float]] = {AUTOREGRESSIVE: [], method: []}
    telemetry = Telemetry(params.device)
    with telemetry:
        for _, name in product(range(REPETITIONS + 1), times):
            times[name].append(_tpot_ms(params, pair, name))
    base, speculative = (statistics.median(seen[1:]) for seen in times.values())  # the first warms up
    said = f"{base:.2f} ms per token, {speculative:.2f} ms with {method}: {base / speculative:.2f}x"
    if params.device != "cuda":
        return said
    graphs = graph_facts(pair.target)
    assert graphs.startswith("captured") or not compiled, f"steps were not captured: {graphs}"
    peak, total = telemetry.columns(NEW_TOKENS)["peak_memory_allocated_bytes"], torch.cuda.mem_get_info()[1]
    assert isinstance(peak, int)
    assert 0 < peak < total, f"the allocator's peak is {peak} of {total} bytes"
    return f"{said}; graphs {graphs}; peak {peak / 2**30:.2f} GiB"


def _tpot_ms(params: StudyParams, pair: Pair, method: str) -> float:
    prompts, generator = greedy_prompts(pair, params)[:1], torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "sampling": SamplingConfig(), "generator": generator}
    if method == AUTOREGRESSIVE:
        result = autoregressive_decode(pair.target, prompts, **given)
    else:
        given |= {"num_draft_tokens": params.headline_num_draft_tokens, "verification": params.verification}
        result = speculative_decode(pair.target, make_proposer(method, pair), prompts, **given)
    tpot = latency_columns(result)["tpot_ms"]
    assert isinstance(tpot, float)
    return tpot


def _pair_name(params: StudyParams) -> str:
    return TOY if params.pair == TOY else EMBEDDED
