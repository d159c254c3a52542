"""The layers of a Hugging Face model through `torch.compile`, for models and devices without our kernels.

A layer is compiled, not the model: all layers share one compiled function, which takes seconds where a model of 36
layers takes minutes. Shapes are dynamic (batch, tokens and context); only sizes of one make a variant. CUDA graphs are
captured around the whole step, not in here. Compiled code is kept in the cache folder for later runs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch

from specdec_lib.config import cache_folder
from specdec_lib.models.cache import KeysAndValues, Placement, RaggedStaticCache
from specdec_lib.models.engines.engine import Engine, Step
from specdec_lib.models.loading.architectures import has_windows

VARIANTS = 64  # of one function in a process: sizes of one or more, times models, times element types


class NotCompiledError(Exception):
    """`torch.compile` cannot do this model or these shapes; the message is the reason."""


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
    return type(layer).forward(
        layer,
        hidden,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=KeysAndValues(Placement(rows, places, mask.shape[-1]), keys, values),
        use_cache=True,
        position_embeddings=rotary,
    )


@functools.cache
def _compiled_layer() -> Callable[..., torch.Tensor]:
    """`_run_layer`, compiled when it is called."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen in (None, default_cache_dir()):  # the compiler itself puts its default there
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "inductor")
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    # Two sizes that are equal in the first call may differ later. torch 2.13 keeps a graph in its autograd cache
    # without the guard that the attended length is the capacity, which holds in a full cache.
    torch.fx.experimental._config.use_duck_shape = False
    torch._functorch.config.enable_autograd_cache = False
    return torch.compile(_run_layer, fullgraph=True, dynamic=True)


class InductorEngine(Engine):
    """Compiled layers; NotCompiledError unless the body is an embedding, layers with rotary positions, and a norm."""

    name = "inductor"

    def __init__(self, body: Any, head: Any, feature_layers: tuple[int, ...], context_length: int):
        super().__init__(body, head, feature_layers, context_length)
        if missing := [name for name in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(body, name)]:
            raise NotCompiledError(f"its body has no {', '.join(missing)}")
        if has_windows(body.config):
            raise NotCompiledError("its layers do not all attend to the whole text")

    def __call__(self, tokens: torch.Tensor, cache: RaggedStaticCache, counts: torch.Tensor | None = None) -> Step:
        """As every engine does; NotCompiledError for shapes that cannot be compiled, before anything is committed."""
        positions = self.place(tokens, cache)
        return Step.of(self.run_layers(tokens, positions, cache.attention_mask(self.head.weight.dtype), cache))

    def run_layers(
        self,
        tokens: torch.Tensor,  # [B, m]
        positions: torch.Tensor,  # [B, m], for the rotary embedding
        mask: torch.Tensor,  # [B, 1, m, view]
        cache: RaggedStaticCache,
    ) -> list[torch.Tensor]:
        """The outputs `[B, m, H]` of the feature layers, and of the last one after the last norm; no other is kept."""
        from torch._dynamo.exc import TorchDynamoException

        run_layer = _compiled_layer()
        where, hidden = cache.placement, self.body.embed_tokens(tokens)
        rotary = self.body.rotary_emb(hidden, position_ids=positions)
        states: list[torch.Tensor] = []
        for number, (layer, kept) in enumerate(zip(self.body.layers, cache.layers, strict=True)):
            arguments = (mask, positions, rotary, kept.keys, kept.values, where.rows, where.positions)
            try:
                hidden = run_layer(layer, hidden, *arguments)
            except TorchDynamoException as error:
                reason = " ".join(str(error).strip().splitlines()[:2])
                raise NotCompiledError(f"{type(error).__name__}: {reason}") from error
            if number in self.feature_layers:
                states.append(hidden)
        return [*states, self.body.norm(hidden)]
