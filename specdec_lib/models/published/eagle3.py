"""EAGLE-3 (arXiv 2503.01840), as its authors and the package `speculators` publish it.

States of some of the target's layers become one by `fc`. The first decoder layer reads it next to the token's
embedding, so that its queries, keys and values come of vectors of twice the width. A reduced vocabulary is scored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.published.config import PublishedConfig
from specdec_lib.models.published.head import PublishedHead


class Eagle3Head(PublishedHead):
    """The head in plain PyTorch; layers after the first are ordinary ones."""

    def __init__(self, config: PublishedConfig):
        super().__init__(config)
        self.features = len(config.feature_layers), config.target_hidden_size
        width, hidden = self.features[0] * self.features[1], config.layers.hidden_size
        self.norm = self.new_norm(hidden)
        self.fc = nn.Linear(width, hidden, bias=False)
        self.input_norm = self.new_norm(width) if config.norm_before_fc else None
        norms = [self.new_norm(config.target_hidden_size) for _ in range(config.fc_norm * self.features[0])]
        self.fc_norm = nn.ModuleList(norms)
        first: Any = self.layers[0]
        first.hidden_norm = self.new_norm(hidden)
        for name in ("q_proj", "k_proj", "v_proj"):
            narrow = getattr(first.self_attn, name)
            wide = nn.Linear(2 * hidden, narrow.out_features, bias=narrow.bias is not None)
            setattr(first.self_attn, name, wide)

    @torch.inference_mode()
    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        tapped = features[..., : self.features[0] * self.features[1]]  # the target's last state is not read
        if self.input_norm is not None:
            tapped = self.input_norm(tapped)
        if len(self.fc_norm):
            states = tapped.unflatten(-1, self.features).unbind(-2)
            tapped = torch.cat([norm(state) for norm, state in zip(self.fc_norm, states, strict=True)], dim=-1)
        fused: torch.Tensor = self.fc(tapped)
        return fused

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, state: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:
        given = self.attending(state, cache)
        hidden = self._first_layer(embedding(tokens, self.embeddings), state, given)
        for layer in self.layers[1:]:
            hidden = layer(hidden, **given)
        return self.norm(hidden) if self.config.norm_output else hidden

    @torch.inference_mode()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden if self.config.norm_output else self.norm(hidden), self.output_rows)

    def _first_layer(self, embedded: torch.Tensor, state: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        """`embedded` and `state` `[B, m, H]` to the output of the first layer `[B, m, H]`."""
        layer: Any = self.layers[0]
        normed = layer.hidden_norm(state)
        joined = torch.cat([layer.input_layernorm(embedded), normed], dim=-1)
        attended, _ = layer.self_attn(joined, **given)
        hidden: torch.Tensor = (normed if self.config.norm_before_residual else state) + attended
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden
