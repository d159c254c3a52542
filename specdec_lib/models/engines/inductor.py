"""The layers of a Hugging Face model through `torch.compile`, for models and devices without kernels of their own.

A layer is compiled, not the model: all layers share one compiled function, which takes seconds where a model of 36
layers takes minutes. Its shapes are dynamic - batch, tokens and context - since a study has hundreds of combinations of
them; only sizes of one make a variant. It is Inductor's default mode: graphs are captured around the whole step, not in
here. What is compiled is kept in the cache folder for later runs.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from specdec_lib.config import cache_folder
from specdec_lib.models.cache import RaggedStaticCache, write_and_view

VARIANTS = 64  # of one function in a process: sizes of one or more, times models, times element types


class _OneLayer:
    """What a layer sees as its cache: tensors that are arguments of the compiled function."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, view: int):
        self.keys, self.values, self.rows, self.places, self.view = keys, values, rows, places, view

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            write_and_view(self.keys, keys, self.rows, self.places, self.view),
            write_and_view(self.values, values, self.rows, self.places, self.view),
        )


def _run_layer(
    layer: torch.nn.Module,
    hidden: torch.Tensor,  # [B, m, H]
    mask: torch.Tensor,  # [B, 1, m, view]
    positions: torch.Tensor,  # [B, m]
    rotary: tuple[torch.Tensor, torch.Tensor],  # cosines and sines, [B, m, D] each
    keys: torch.Tensor,  # [B, H_kv, capacity, D], written in place
    values: torch.Tensor,  # [B, H_kv, capacity, D], written in place
    rows: torch.Tensor,  # [B, 1]
    places: torch.Tensor,  # [B, m]
) -> torch.Tensor:  # [B, m, H]
    cache = _OneLayer(keys, values, rows, places, mask.shape[-1])
    return type(layer).forward(
        layer,
        hidden,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        position_embeddings=rotary,
    )


class NotCompiledError(Exception):
    """`torch.compile` cannot do this model or these shapes, and why."""


@functools.cache
def _compiled_layer() -> Callable[..., torch.Tensor]:
    """`_run_layer`, compiled when it is called. (The compiler takes a second to import, so it waits until now.)"""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen in (None, default_cache_dir()):  # the compiler itself puts its default there
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "inductor")
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    # Two sizes that happen to be equal in the first call must not be taken to be the same for ever: torch 2.13 keeps a
    # graph in its autograd cache without the guard that the attended length is the capacity, as it is in a full cache.
    torch.fx.experimental._config.use_duck_shape = False
    torch._functorch.config.enable_autograd_cache = False
    return torch.compile(_run_layer, fullgraph=True, dynamic=True)


class CompiledLayers:
    """The layers of a model body that is an embedding, layers with rotary positions, and a norm.

    Raises:
        NotCompiledError: the body has another shape.
    """

    def __init__(self, body: Any):
        if missing := [name for name in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(body, name)]:
            raise NotCompiledError(f"its body has no {', '.join(missing)}")
        self.body = body

    def __call__(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: RaggedStaticCache
    ) -> list[torch.Tensor]:
        """The output `[B, m, H]` of each layer, the last one after the last norm.

        Raises:
            NotCompiledError: for these shapes; nothing has been committed.
        """
        from torch._dynamo.exc import TorchDynamoException

        run_layer = _compiled_layer()
        where, outputs = cache.placement, [self.body.embed_tokens(tokens)]
        rotary = self.body.rotary_emb(outputs[0], position_ids=positions)
        for layer, kept in zip(self.body.layers, cache.layers, strict=True):
            arguments = (mask, positions, rotary, kept.keys, kept.values, where.rows, where.positions)
            try:
                outputs.append(run_layer(layer, outputs[-1], *arguments))
            except TorchDynamoException as error:
                said = " ".join(str(error).strip().splitlines()[:2])
                raise NotCompiledError(f"{type(error).__name__}: {said}") from error
        return [*outputs[1:-1], self.body.norm(outputs[-1])]


def compile_seconds() -> float:
    """What `torch.compile` has taken in this process until now."""
    if "torch._dynamo" not in sys.modules:
        return 0.0
    from torch._dynamo.utils import compilation_time_metrics

    return sum(compilation_time_metrics.get("_compile.compile_inner", []))
