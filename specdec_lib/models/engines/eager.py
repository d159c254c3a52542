"""The model as Hugging Face wrote it, operator by operator."""

from __future__ import annotations

from typing import Any

import torch

from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.engines.engine import Engine, Step


class EagerEngine(Engine):
    """Calls the model's own `forward`. Hooks collect the states of the feature layers."""

    name = "eager"

    def __init__(self, body: Any, head: Any, feature_layers: tuple[int, ...], context_length: int):
        super().__init__(body, head, feature_layers, context_length)
        self._states = states = list[torch.Tensor]()
        for layer in feature_layers:
            body.layers[layer].register_forward_hook(lambda module, args, output: states.append(output))

    def __call__(self, tokens: torch.Tensor, cache: RaggedStaticCache, counts: torch.Tensor | None = None) -> Step:
        self._states.clear()
        hidden = self.run(self.body, tokens, cache).last_hidden_state
        return Step.of([*self._states, hidden])

    def run(self, module: Any, tokens: torch.Tensor, cache: RaggedStaticCache) -> Any:
        """What a transformers module returns for `tokens` `[B, m]` over the ragged cache."""
        positions = self.place(tokens, cache)
        mask = cache.attention_mask(self.head.weight.dtype)
        return module(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        )
