"""What computes the passes of one model: the model as Hugging Face wrote it, or an engine that does the same faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specdec_lib.models.cache import LayerShape, RaggedCache, RaggedStaticCache, ShapesCache


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
    """Computes hidden states and logits of one model: its body, and its output layer `head`.

    Attributes:
        capturable: whether a pass is operators on tensors alone, so that a CUDA graph can hold it.
    """

    name: str
    capturable = True

    def __init__(self, body: Any, head: Any, feature_layers: tuple[int, ...], context_length: int):
        self.body, self.head = body, head
        self.feature_layers, self.context_length = feature_layers, context_length
        self._shapes: list[LayerShape | None] | None = None  # of the cache; found when the first one is made

    def new_cache(self, batch_size: int, capacity: int) -> RaggedCache:
        """An empty cache for `batch_size` rows of up to `capacity` tokens each."""
        weight = self.head.weight
        if self._shapes is None:
            probe = ShapesCache(weight.device)
            token = torch.zeros(1, 1, dtype=torch.int64, device=weight.device)
            with torch.inference_mode():
                self.body(input_ids=token, position_ids=probe.place(1), past_key_values=probe, use_cache=True)
            self._shapes = probe.shapes()
        return RaggedStaticCache(batch_size, capacity, self._shapes, weight.dtype, weight.device)

    def __call__(self, tokens: torch.Tensor, cache: Any, counts: torch.Tensor | None = None) -> Step:
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
        # The model's own code makes the masks that its layers need, by `attention.ragged_mask`.
        positions = self.place(tokens, cache)
        out = self.body(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        return Step.of([*self._states, out.last_hidden_state])
