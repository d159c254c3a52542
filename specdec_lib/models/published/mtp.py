"""Layers for multi-token prediction (MTP, DeepSeek-V3, arXiv 2412.19437; FastMTP, arXiv 2509.18362).

One more decoder layer reads the token's embedding joined with the target's last state. It scores the whole vocabulary
with the target's rows. Its own output is the state of the next drafted position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.published.config import PublishedConfig
from specdec_lib.models.published.head import PublishedHead


class MtpHead(PublishedHead):
    """The layer in plain PyTorch."""

    def __init__(self, config: PublishedConfig):
        super().__init__(config)
        layer: Any = self.layers[0]
        layer.input_proj = nn.Linear(2 * self.hidden_size, self.hidden_size, bias=False)
        for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
            setattr(layer, name, self.new_norm(self.hidden_size))

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        return features[..., -self.hidden_size :]  # the target's last state

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, state: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:
        layer: Any = self.layers[0]
        embedded = layer.token_layernorm(embedding(tokens, self.embeddings))
        joined = layer.input_proj(torch.cat([embedded, layer.hidden_layernorm(state)], dim=-1))
        hidden: torch.Tensor = layer.final_layernorm(layer(joined, **self.attending(joined, cache)))
        return hidden

    @torch.inference_mode()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self.output_rows)
