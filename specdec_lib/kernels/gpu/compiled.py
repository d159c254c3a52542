"""The Triton kernels compiled for a GPU that is not here: for what the library would launch, and how they come out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from specdec_lib.kernels.gpu import rows, sampling, verification

CAPABILITIES = {80: "A100", 90: "H100 and H200"}
VOCABULARY, GAMMA, STOPS = 151936, 4, 2


class Compiled(NamedTuple):
    """A kernel as it would be loaded.

    Attributes:
        registers: of a thread.
        stack_bytes: of a thread, in the device's memory: what did not fit its registers.
        shared_bytes: of a block of threads.
    """

    name: str
    ptx: str
    cubin: bytes
    registers: int
    stack_bytes: int
    shared_bytes: int


def compile_kernels(capability: int) -> list[Compiled]:
    """All kernels for GPUs of this compute capability, such as 90, in every kind that a study launches.

    Raises:
        Exception: of Triton, where a kernel does not compile.
    """
    with _compiling(capability) as kernels:
        for batch, dtype in ((1, torch.bfloat16), (16, torch.float32), (1, torch.float64)):
            _launch_all(batch, dtype)
    return [_inspected(kernel) for kernel in {kernel.hash: kernel for kernel in kernels}.values()]


def summary(capability: int) -> list[str]:
    """A line for each kernel: the most that any kind of it takes."""
    kinds: dict[str, list[Compiled]] = {}
    for kernel in compile_kernels(capability):
        kinds.setdefault(kernel.name, []).append(kernel)
    return [
        f"{name}, {len(kernels)} kinds: at most {max(each.registers for each in kernels)} registers of a thread, "
        f"{max(each.stack_bytes for each in kernels)} bytes spilt, {max(each.shared_bytes for each in kernels)} shared"
        for name, kernels in kinds.items()
    ]


@contextmanager
def _compiling(capability: int) -> Iterator[list[Any]]:
    """Within this block a kernel that is launched is compiled for another device, and does not run."""
    found: list[Any] = []
    run = JITFunction.run
    device = SimpleNamespace(
        get_current_device=lambda: f"sm_{capability}",
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    )

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(run(kernel, *arguments, grid=grid, warmup=True, **options))

    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(triton.runtime.driver, "_active", device),
    ):
        yield found


def _launch_all(batch: int, dtype: torch.dtype) -> None:
    """Every kernel, as the baseline and speculation launch it at this batch; only types and shapes matter."""
    places = torch.zeros(batch, GAMMA + 1, dtype=torch.int64)
    uniforms = torch.zeros(batch, GAMMA + 1, dtype=torch.float64)
    logits = torch.empty(1, 1, VOCABULARY, dtype=dtype).expand(batch, GAMMA + 1, VOCABULARY)
    probs = torch.empty(1, 1, VOCABULARY, dtype=sampling.dtype_of(logits)).expand_as(logits)
    for temperature in (0.0, 1.0):
        sampling.probabilities(logits[:, :1], temperature)
    sampling.draw(probs[:, 0], uniforms[:, 1])
    verification.verify(probs, probs[:, 1:], places[:, 1:], uniforms)
    flags, state = torch.zeros(batch, dtype=torch.bool), torch.zeros(8, batch, dtype=torch.int64)
    for drafted, counts, stops in ((0, 0, 0), (GAMMA, 1 + 3 * GAMMA, 0), (GAMMA, 1 + 3 * GAMMA, STOPS)):
        ids, report = torch.zeros(stops, dtype=torch.int64), torch.zeros(3 + 2 * batch, dtype=torch.int64)
        outcome = state[2], state[3], torch.zeros(counts, dtype=torch.int64), report
        step = places[:, :drafted], probs[:, :drafted], probs[:, : drafted + 1], state[4], state[5]
        rows.append(places, state[0], state[1], flags, ids, flags[0], *outcome, *step)


def _inspected(kernel: Any) -> Compiled:
    """What the assembler made of a kernel, by CUDA's own tool, which comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED):(\d+)", said)}
    shared = max(usage["SHARED"], kernel.metadata.shared)
    asm = kernel.asm["ptx"], kernel.asm["cubin"]
    return Compiled(kernel.metadata.name, *asm, usage["REG"], usage["STACK"], shared)
