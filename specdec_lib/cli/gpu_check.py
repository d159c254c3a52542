"""A check of a machine in about a minute: is it the one the params are for, is decoding exact on it, does it run?

Every item gives a verdict; one that fails does not keep the others from running. The models need no hub: toys and a
tiny Llama for exactness, the embedded pair for the sweep. They run on one device, also where the study's target is
spread over several.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.decoding.captured_loop import graph_facts
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.ops import TritonOps
from specdec_lib.exactness import certify
from specdec_lib.exactness.adversaries import SETTINGS, enumeration_table
from specdec_lib.exactness.certificate import Certificate
from specdec_lib.exactness.kernel_oracle import differences
from specdec_lib.kernels.gpu import ops as gpu_kernels
from specdec_lib.machine.environment import check_device, check_product, device_name
from specdec_lib.machine.nvml import NvmlUnavailableError, open_device
from specdec_lib.machine.telemetry import Telemetry
from specdec_lib.methods import AUTOREGRESSIVE, make_proposer
from specdec_lib.models.pair import TOY, Pair, load_pair
from specdec_lib.models.tensor_parallel import check_devices
from specdec_lib.study.rows.columns import latency_columns

PASS, FAIL, SKIP = "pass", "fail", "skipped"
EMBEDDED = "smollm2-135m-embedded"
NEW_TOKENS, REPETITIONS = 64, 3  # of the sweep
KERNEL_TOKENS, KERNEL_ROWS = 151_936, 8
READ = ("energy_joules_per_token", "gpu_utilization_percent", "throttled", "foreign_processes")


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
        "kernels": lambda: _kernels(params),
        "exactness": lambda: _exactness(params),
        f"short sweep in {params.dtype}": lambda: _sweep(params),
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
    return f"{name}: {facts['product']}, driver {facts['driver']}, {limits}"


def _telemetry(params: StudyParams) -> str:
    """The driver's readings while the device is busy."""
    if params.device != "cuda":
        raise Skipped(f"device is {params.device}, which has no NVIDIA driver to ask")
    try:
        open_device()
    except NvmlUnavailableError as error:
        raise Skipped(str(error)) from None
    with Telemetry(params.device) as telemetry:
        x, end = torch.ones(2048, 2048, device=params.device), time.monotonic() + 1.5
        while time.monotonic() < end:
            (x @ x).sum().item()
    return judge_telemetry(telemetry.columns(new_tokens=1))


def judge_telemetry(columns: Mapping[str, Any]) -> str:
    """A summary of a row's telemetry; AssertionError names what makes no sense, or is null without a reason."""
    note, joules = columns["telemetry_note"], columns["energy_joules_per_token"]
    missing = [name for name in READ if columns[name] is None]
    assert note or not missing, f"null without reason: {', '.join(missing)}"
    assert joules is None or joules > 0, "the energy counter stands still"
    assert not columns["foreign_processes"], f"{columns['foreign_processes']} other process(es) compute on the device"
    assert not columns["throttled"], f"the device is throttled: {columns['throttle_reasons']}"
    return f"{'no energy counter' if joules is None else f'{joules:.0f} J in 1.5 s'}; {note or 'nothing missing'}"


def _kernels(params: StudyParams) -> str:
    """The Triton kernels next to the plain operations, on this device and at the size of a real vocabulary."""
    device = torch.device(params.device)
    if device.type != "cuda":
        raise Skipped(f"device is {params.device}, and the Triton kernels are for GPUs")
    if reason := gpu_kernels.why_not_on_gpu():
        raise Skipped(f"PyTorch computes the small operations of a step: {reason}")
    found = differences(TritonOps, device, KERNEL_TOKENS, KERNEL_ROWS)
    assert not found, f"Triton kernels differ from plain PyTorch in {len(found)} ways: {'; '.join(found[:3])}"
    return f"Triton kernels compute as plain PyTorch does, at {KERNEL_TOKENS:,} tokens"


def _exactness(params: StudyParams) -> str:
    """Of the certificate: toys, a tiny Llama as it is and compiled, and greedy output of the sweep's pair."""
    engines = ("eager", "inductor" if params.device == "cuda" else "kernels")
    paths = enumeration_table(params.methods[:1], params.verification[0], params.device, engines, SETTINGS[:1])
    toy = params.model_copy(update={"pair": TOY, "dtype": "float32"})
    tests, cells = certify.joint_law(toy, [], certify.QUICK)
    rows, divergences = certify.greedy(params, [load_pair(_pair_name(params), device=params.device, dtype="float32")])
    none = pd.DataFrame()
    failures = Certificate(paths, tests, cells, none, rows, divergences, none).failures()
    assert not failures, "; ".join(failures)
    return f"{paths['paths'].sum():,} paths, {len(tests)} tests of sampled output, {rows['rows'].sum()} greedy rows"


def _sweep(params: StudyParams) -> str:
    """Time per token of the baseline and of the headline method, interleaved."""
    method, dtype = params.methods[0], "float32" if params.pair == TOY else params.dtype
    pair = load_pair(_pair_name(params), device=params.device, dtype=dtype)
    times: dict[str, list[float]] = {AUTOREGRESSIVE: [], method: []}
    for _, name in product(range(REPETITIONS + 1), times):
        times[name].append(_tpot_ms(params, pair, name))
    base, speculative = (statistics.median(seen[1:]) for seen in times.values())  # the first warms up
    graphs = graph_facts(pair.target)
    assert params.device != "cuda" or graphs.startswith("captured"), f"steps not captured: {graphs}"
    said = f"{base:.2f} ms per token, {speculative:.2f} ms with {method}: {base / speculative:.2f}x"
    return f"{said}; {pair.target.engine}, graphs {graphs}"


def _tpot_ms(params: StudyParams, pair: Pair, method: str) -> float:
    prompts, generator = certify.greedy_prompts(pair, params)[:1], torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "sampling": SamplingConfig(), "generator": generator}
    if method == AUTOREGRESSIVE:
        result = autoregressive_decode(pair.target, prompts, **given)
    else:
        given |= {"num_draft_tokens": params.headline_num_draft_tokens, "verification": params.verification[0]}
        given["draft_length"] = params.draft_length[0]
        result = speculative_decode(pair.target, make_proposer(method, pair), prompts, **given)
    tpot = latency_columns(result)["tpot_ms"]
    assert isinstance(tpot, float)
    return tpot


def _pair_name(params: StudyParams) -> str:
    return TOY if params.pair == TOY else EMBEDDED
