"""The first minute on a CUDA machine: is it the one the params are for, does decoding stay exact, does it run at all?

Every item gives a verdict with what it saw; one that fails does not keep the others from running. Small models that
need no hub are used: toys for exactness, the embedded pair for the sweep. They run on one device also where the study's
target is spread over several, of which only the number is checked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import make_proposer
from specdec_lib.decoding.speculative import Verifier, speculative_decode
from specdec_lib.decoding.step_loop import graph_facts
from specdec_lib.exactness.certificate import GAMMA, greedy_prompts, short_prompts
from specdec_lib.exactness.engines import path_table
from specdec_lib.exactness.greedy import greedy_agreement
from specdec_lib.exactness.joint_law import decide, put_to_test
from specdec_lib.exactness.mutants import without_residual
from specdec_lib.exactness.subjects import engine_sampler
from specdec_lib.machine.environment import check_device, check_product, device_name
from specdec_lib.machine.nvml import NvmlUnavailableError, open_device
from specdec_lib.machine.telemetry import Telemetry
from specdec_lib.models.pair import TOY, Pair, load_pair
from specdec_lib.models.tensor_parallel import check_devices
from specdec_lib.study.timing import latency_columns

PASS, FAIL, SKIP = "pass", "fail", "skipped"
EMBEDDED = "smollm2-135m-embedded"
SAMPLES = 4000  # continuations of each prompt of a toy
NEW_TOKENS = 64
REPETITIONS = 3
READINGS = {  # what must be known of a device, or have a reason: under which name the reason is kept
    "power_limit_watts": "power limit",
    "sm_clock_mhz": "clock",
    "memory_bytes": "memory",
    "driver": "driver",
}


@dataclass(frozen=True)
class Verdict:
    """What one item found."""

    item: str
    outcome: str  # PASS, FAIL or SKIP
    detail: str
    seconds: float


class Skipped(Exception):  # noqa: N818 - no error
    """An item that cannot be checked on this machine, and why."""


def gpu_check(params: StudyParams) -> Iterator[Verdict]:
    """Check the machine for a study, item by item; each verdict comes as soon as it is known."""
    sweep = _Sweep(params)
    items: dict[str, Callable[[], str]] = {
        "device": lambda: _device(params),
        "product": lambda: _product(params),
        "telemetry": lambda: _telemetry(params),
        "greedy exactness": lambda: _greedy(params),
        "sampled exactness": lambda: _sampled(params),
        "enumerated exactness": lambda: _enumerated(params),
        f"{params.dtype}, model as it is": lambda: sweep.run(compiled=False),
        f"{params.dtype}, compiled": lambda: sweep.run(compiled=True),
        "graph capture": sweep.capture,
        "peak memory": sweep.memory,
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
    check_device(params)
    check_devices(params.tensor_parallel, params.device)
    return device_name(params.device) + (f", {params.num_devices} of them" if params.num_devices > 1 else "")


def _product(params: StudyParams) -> str:
    """The product that the price is of, with its power limit."""
    if params.device != "cuda":
        raise Skipped("only GPUs are products of hardware/gpus.yaml")
    facts = open_device().facts()
    assert facts["product"] is not None, facts["missing"]
    check_product(params, facts["product"])
    return f"{facts['product']}, {facts['power_limit_watts']} W of {facts['default_power_limit_watts']} W by default"


def _telemetry(params: StudyParams) -> str:
    """What the driver says must make sense; what it does not say has a reason."""
    if params.device != "cuda":
        raise Skipped(f"{params.device} has no NVIDIA driver to ask")
    try:
        facts = open_device().facts()
    except NvmlUnavailableError as error:
        raise Skipped(str(error)) from None
    telemetry = Telemetry(params.device)
    with telemetry:
        _busy(params.device, seconds=1.5)
    return judge_telemetry(facts, telemetry.columns(new_tokens=1), torch.cuda.mem_get_info()[1])


def judge_telemetry(facts: dict[str, Any], columns: dict[str, Any], memory_bytes: int) -> str:
    """Hold readings against what they can be; returns a summary.

    Raises:
        AssertionError: naming the reading that makes no sense, or is null without a reason.
    """
    missing = facts["missing"]
    for name, reading in READINGS.items():
        assert facts[name] or reading in missing, f"{name} is null without reason"
    if facts["memory_bytes"]:
        ratio = facts["memory_bytes"] / memory_bytes
        assert 0.85 < ratio < 1.15, f"driver and PyTorch see different memory: {ratio:.2f}"
    if facts["sm_clock_mhz"] and facts["max_sm_clock_mhz"]:
        assert facts["sm_clock_mhz"] <= facts["max_sm_clock_mhz"] * 1.01, "the clock is above its maximum"
    for name in ("energy_joules_per_token", "gpu_utilization_percent", "throttled", "foreign_processes"):
        assert columns[name] is not None or columns["telemetry_note"], f"{name} is null without reason"
    joules = columns["energy_joules_per_token"]
    assert joules is None or joules > 0, "the energy counter stands still"
    assert not columns["foreign_processes"], f"{columns['foreign_processes']} other process(es) compute on the device"
    assert not columns["throttled"], f"the device is throttled: {columns['throttle_reasons']}"
    energy = "no energy counter" if joules is None else f"{joules:.0f} J in 1.5 s"
    return f"driver {facts['driver']}, {energy}; {columns['telemetry_note'] or 'nothing missing'}"


def _greedy(params: StudyParams) -> str:
    """Greedy speculative output in float32 equals the baseline's, on toys and on the embedded pair if it is there."""
    agreed = []
    for name in dict.fromkeys((TOY, _pair_name(params))):
        pair = load_pair(name, device=params.device, dtype="float32")
        table, divergences = greedy_agreement(
            pair.target,
            {str(method): make_proposer(method, pair) for method in params.methods},
            greedy_prompts(pair, params, long=False)[:2],
            num_draft_tokens=(1, 4),
            max_new_tokens=24,
        )
        differ = table[table["equal_rows"] < table["rows"]]
        assert differ.empty, f"{name}: greedy output differs from token {divergences['position'].min()} on"
        agreed.append(f"{name} {table['rows'].sum()} rows")
    return f"equal token for token: {', '.join(agreed)}"


def _enumerated(params: StudyParams) -> str:
    """On every path the output of a tiny Llama has the target's law, as it is and through what this device compiles."""
    compiled = "inductor" if params.device == "cuda" else "kernels"
    table = path_table(params.device, engines=("eager", compiled))
    off = table[(table["largest_error"] > table["tolerance"]) | (table["unexplained"] > 0)]
    assert off.empty, f"another law than the target's through {' and '.join(off['path'].unique())}"
    return f"{table['paths'].sum():,} paths through {' and '.join(f'({path})' for path in table['path'].unique())}"


def _sampled(params: StudyParams) -> str:
    """No test tells the sampled output of a toy from its exact law, and one does tell a sampler that is wrong."""
    pair, sampling = load_pair(TOY, device=params.device), SamplingConfig()
    tests = []
    rules: list[tuple[str, str | Verifier]] = [
        *((method, "token") for method in params.methods),
        ("draft", without_residual),
    ]
    for method, rule in rules:
        sampler = engine_sampler(
            pair.target,
            make_proposer(method, pair),
            num_draft_tokens=GAMMA,
            sampling=sampling,
            length=GAMMA + 2,
            batch_size=1024,
            verification=rule,
        )
        each, _ = put_to_test(
            sampler,
            pair.target,
            short_prompts(pair, params),
            sampling=sampling,
            length=GAMMA + 2,
            samples=SAMPLES,
            seed=params.seed,
        )
        tests.append(each.assign(method=method, sound=rule == "token"))
    table = decide(pd.concat(tests, ignore_index=True))
    biased = table[table["sound"] & table["rejected"]]
    assert biased.empty, f"{', '.join(biased['method'])}: the output is not the target's"
    wrong = table[~table["sound"]]
    assert wrong["rejected"].any(), "the sampler without a residual was not noticed"
    return f"{len(params.methods)} sound samplers pass, the wrong one is rejected (p = {wrong['p_value'].min():.1g})"


class _Sweep:
    """A short sweep of the embedded pair: as it is, and compiled where the engine can (elsewhere skipped: why)."""

    def __init__(self, params: StudyParams):
        self.params = params
        self.peaks: dict[str, int] = {}
        self.graphs: str | None = None  # what was captured of the compiled pair's steps

    def run(self, *, compiled: bool) -> str:
        """Time per token of the baseline and of the headline method, medians of interleaved repetitions."""
        pair = self._load(compiled)
        prompts = greedy_prompts(pair, self.params, long=False)[:1]
        telemetry = Telemetry(self.params.device)
        times: dict[str, list[float]] = {"autoregressive": [], self.params.methods[0]: []}
        for repetition in range(REPETITIONS + 1):  # the first warms up
            for method, seen in times.items():
                with telemetry:
                    tpot = self._tpot_ms(pair, method, prompts)
                seen += [tpot] * (repetition > 0)
                peak = telemetry.columns(NEW_TOKENS)["peak_memory_allocated_bytes"]
                self.peaks[method] = max(self.peaks.get(method, 0), int(peak or 0))
        self.graphs = graph_facts(pair.target) if compiled else None
        base, speculative = (statistics.median(values) for values in times.values())
        return f"{base:.2f} ms per token, {speculative:.2f} ms with {self.params.methods[0]}: {base / speculative:.2f}x"

    def capture(self) -> str:
        """The steps of the compiled pair were replays of captured graphs; those of the pair as it is never are."""
        if self.params.device != "cuda":
            raise Skipped("no CUDA device")
        if self.graphs is None:
            raise Skipped("no sweep ran")
        assert self.graphs.startswith("captured"), self.graphs
        return self.graphs

    def memory(self) -> str:
        """The allocator's peak fits the device."""
        if self.params.device != "cuda":
            raise Skipped("only CUDA counts what it allocates")
        if not self.peaks:
            raise Skipped("no sweep ran")
        total = torch.cuda.mem_get_info()[1]
        assert all(0 < peak < total for peak in self.peaks.values()), f"peaks {self.peaks} of {total} bytes"
        return ", ".join(f"{method} {peak / 2**30:.2f} GiB" for method, peak in self.peaks.items())

    def _load(self, compiled: bool) -> Pair:
        dtype = "float32" if self.params.pair == TOY else self.params.dtype
        pair = load_pair(_pair_name(self.params), device=self.params.device, dtype=dtype, compiled=compiled)
        if compiled and pair.target.engine == "eager" and graph_facts(pair.target).startswith("none"):
            raise Skipped(
                f"the engine has nothing compiled for {pair.name} on {self.params.device}: both runs would be the same"
            )
        return pair

    def _tpot_ms(self, pair: Pair, method: str, prompts: list[torch.Tensor]) -> float:
        sampling = SamplingConfig(temperature=1.0)
        generator = torch.Generator(pair.target.device).manual_seed(0)
        options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "sampling": sampling, "generator": generator}
        if method == "autoregressive":
            result = autoregressive_decode(pair.target, prompts, **options)
        else:
            gamma = self.params.headline_num_draft_tokens
            proposer = make_proposer(method, pair)
            result = speculative_decode(pair.target, proposer, prompts, num_draft_tokens=gamma, **options)
        tpot = latency_columns(result)["tpot_ms"]
        assert isinstance(tpot, float)
        return tpot


def _pair_name(params: StudyParams) -> str:
    return TOY if params.pair == TOY else EMBEDDED


def _busy(device: str, seconds: float) -> None:
    """Keep a device at work."""
    x = torch.ones(2048, 2048, device=device)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        (x @ x).sum().item()
