"""The Triton kernels for GPUs on a machine without one: interpreted, compiled, and on a device without contents.

The interpreter is chosen before Triton is imported, so that it has a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.kernels.gpu import ops as gpu_kernels
from specdec_lib.params_files import load_params
from specdec_lib.study.dry_run import fake_gpu as there
from specdec_lib.study.dry_run.fake_gpu import fake_gpu, short_pair

INTERPRETED = Path(__file__).parents[1] / "support" / "interpreted_kernels.py"
KERNELS = {"block_peaks", "normalised", "block_masses", "drawn", "residual_masses", "next_tokens", "end_step"}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton: make triton, or the CUDA build of PyTorch"
)


@needs_triton
@pytest.mark.slow
def test_interpreted_kernels_are_exact_and_faulty_ones_are_caught():
    """The tests of `interpreted_kernels.py`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_for_the_gpus_of_the_study(capability, tmp_path, monkeypatch):
    """To machine code that keeps all of its numbers in registers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from specdec_lib.kernels.gpu.compiled import compile_kernels, summary

    compiled = compile_kernels(capability)
    assert {kernel.name for kernel in compiled} == KERNELS
    for kernel in compiled:
        assert f".target sm_{capability}" in kernel.ptx
        assert kernel.cubin.startswith(b"\x7fELF")
        assert 0 < kernel.registers <= 255
        assert kernel.stack_bytes == 0, f"{kernel.name} spills"
    lines = summary(capability)
    print(*lines, sep="\n")
    assert any(line.startswith("next_tokens, 2 kinds: at most ") for line in lines)


def test_a_captured_step_on_a_gpu_starts_few_operators(monkeypatch):
    """4 + 1 distributions, 4 draws, one verification and one end, in place of 121 operators of PyTorch."""
    monkeypatch.setattr(there, "LAYERS", 1)
    ours, plain = (operators_of_a_step(ops) for ops in (None, PlainOps(SamplingConfig())))
    kernels = [name.split(".")[1] for name in ours if name.startswith("specdec_gpu")]
    assert kernels == ["probabilities", "draw"] * 4 + ["probabilities", "verify", "append"]
    assert not any(name.startswith("specdec_gpu") for name in plain)
    assert len(plain) - len(ours) >= 121 - len(kernels)


def operators_of_a_step(ops):
    """Of the last step that was captured, views among them."""
    params = load_params("h100")
    with fake_gpu(params) as device:
        pair, _ = short_pair(params)
        given = {"max_new_tokens": 6, "num_draft_tokens": 4, "sampling": SamplingConfig(), "ops": ops}
        proposer, seed = ModelProposer(pair.draft), torch.Generator().manual_seed(0)
        speculative_decode(pair.target, proposer, [torch.arange(8)], generator=seed, **given)
        return [str(entry[0]) for entry in device.before]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_where_they_do_not_run_the_reason_is_known():
    gpu_kernels.why_not_on_gpu.cache_clear()
    assert not gpu_kernels.available(torch.device("cuda"))
    assert gpu_kernels.why_not_on_gpu()
    assert gpu_kernels.kernel_facts()["kernels"].startswith("none: ")
