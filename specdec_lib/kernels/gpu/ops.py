"""The small operations of a step with the Triton kernels: the same functions as `specdec_lib.kernels.ops` has for CPUs.

They are operators of PyTorch, so that a device without contents knows what they make. Triton is imported when the first
of them runs. Where it has an interpreter in place of a compiler, as in tests, they run on a CPU too.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def available(device: torch.device) -> bool:
    """Whether the kernels run on this device."""
    return device.type == "cuda" and why_not_on_gpu() is None


@functools.cache
def why_not_on_gpu() -> str | None:
    """The reason why no kernel runs on a GPU here, None if they do; compiles one at the first call.

    Triton comes with the CUDA build of PyTorch, and needs a C compiler.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        draw(torch.ones(1, 1, device="cuda"), torch.zeros(1, dtype=torch.float64, device="cuda"))
    except Exception as error:  # noqa: BLE001 - whatever keeps it from running, plain PyTorch computes the same
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def kernel_facts() -> dict[str, object]:
    """What computes the small operations of a step on a GPU."""
    return {"kernels": f"none: {reason}" if (reason := why_not_on_gpu()) else "Triton"}


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) of `[..., V]`, a one-hot of the first largest at temperature 0.

    In float32, and in float64 for float64 logits.
    """
    return torch.ops.specdec_gpu.probabilities(logits, temperature)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """One token from each of `weights` `[..., V]` by inversion of `uniforms` `[...]` float64, int64 `[...]`."""
    return torch.ops.specdec_gpu.draw(weights, uniforms)


def verify(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """What `decoding.verification.verify` does with the same tensors."""
    return torch.ops.specdec_gpu.verify(*tensors)


def append(rows: Sequence[Tensor], *step: Tensor) -> None:
    """What `specdec_lib.kernels.ops.append` does, with the same arguments."""
    torch.ops.specdec_gpu.append(*rows, *step)


def _operator(module: str, name: str, schema: str) -> Callable[[Callable[..., object]], None]:
    """Register a function of a module here as an operator; what is decorated says what it makes, without contents."""

    def run(*arguments: object) -> object:
        return getattr(importlib.import_module(f"specdec_lib.kernels.gpu.{module}"), name)(*arguments)

    def register(fake: Callable[..., object]) -> None:
        operator = f"specdec_gpu::{name}"
        torch.library.define(operator, schema)
        torch.library.impl(operator, ("cuda", "cpu"), run)
        torch.library.register_fake(operator, fake)

    return register


@_operator("sampling", "probabilities", "(Tensor logits, float temperature) -> Tensor")
def _(logits: Tensor, temperature: float) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape, dtype=dtype)


@_operator("sampling", "draw", "(Tensor weights, Tensor uniforms) -> Tensor")
def _(weights: Tensor, uniforms: Tensor) -> Tensor:
    return uniforms.new_empty(uniforms.shape, dtype=torch.int64)


@_operator(
    "verification",
    "verify",
    "(Tensor target_probs, Tensor draft_probs, Tensor draft_tokens, Tensor uniforms) -> (Tensor, Tensor)",
)
def _(target_probs: Tensor, draft_probs: Tensor, draft_tokens: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    return draft_tokens.new_empty(len(draft_tokens)), draft_tokens.new_empty(len(draft_tokens))


@_operator(
    "rows",
    "append",
    "(Tensor(a!) tokens, Tensor(b!) lengths, Tensor ends, Tensor(c!) done, Tensor stop_token_ids, Tensor(d!) saw_nan,"
    " Tensor(e!) num_emitted, Tensor(f!) num_tested, Tensor(g!) counts, Tensor(h!) report, Tensor draft_tokens,"
    " Tensor draft_probs, Tensor target_probs, Tensor num_accepted, Tensor next_token) -> ()",
)
def _(*tensors: Tensor) -> None:
    """It changes its arguments alone."""
