"""What computes the passes of one model: the model as Hugging Face wrote it, or an engine that does the same faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specdec_lib.models.cache import RaggedStaticCache


@dataclass(frozen=True)
class Step:
    """The result of one forward pass over m tokens."""

    hidden: torch.Tensor  # [B, m, H], the input of the output layer
    features: torch.Tensor  # [B, m, F], the input of a draft head: states of chosen layers, then `hidden`

    @classmethod
    def of(cls, states: Sequence[torch.Tensor]) -> Step:
        """Join the states `[B, m, H]` of the feature layers and, as the last one, the hidden states."""
        return cls(states[-1], torch.cat([*states], dim=-1) if len(states) > 1 else states[-1])


class Engine:
    """Computes hidden states and logits of one model: its body, and its output layer `head`."""

    name: str

    def __init__(self, body: Any, head: Any, feature_layers: tuple[int, ...], context_length: int):
        self.body, self.head = body, head
        self.feature_layers, self.context_length = feature_layers, context_length

    def __call__(self, tokens: torch.Tensor, cache: RaggedStaticCache, counts: torch.Tensor | None = None) -> Step:
        """Run `tokens` `[B, m]` after each row's committed length, and commit nothing.

        Only `counts` `[B]` of each row's tokens matter. The rest is padding, which an engine may leave out.
        """
        raise NotImplementedError

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., H]` to logits `[..., V]`."""
        return self.head(hidden)

    def place(self, tokens: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:  # [B, m]
        """Choose where `tokens` `[B, m]` go in the cache; returns their positions for the rotary embedding."""
        # Drafts may go past the context; what they compute there is not used.
        return cache.place(tokens.shape[1]).clamp(max=self.context_length - 1)


class EagerEngine(Engine):
    """Calls the model's own `forward`, operator by operator. Hooks collect the states of the feature layers."""

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
