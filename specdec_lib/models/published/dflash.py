"""DFlash (z-lab): a block of drafts in one pass, in which every place sees every other one.

A few decoder layers read the last token and mask tokens. They attend to the block, and to keys and values that they
make of the target's states: what the head keeps of a text needs no attention. A block has the size that the head was
trained with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.published.config import PublishedConfig
from specdec_lib.models.published.head import PublishedHead


class DFlashHead(PublishedHead):
    """The head in plain PyTorch."""

    parallel = True

    def __init__(self, config: PublishedConfig):
        super().__init__(config)
        self.width = len(config.feature_layers) * config.target_hidden_size
        self.fc = nn.Linear(self.width, self.hidden_size, bias=False)
        self.hidden_norm, self.norm = self.new_norm(self.hidden_size), self.new_norm(self.hidden_size)
        self.block_size, self.most_tokens = config.block_size, config.block_size - 1

    @torch.inference_mode()
    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        fused: torch.Tensor = self.hidden_norm(self.fc(features[..., : self.width]))
        return fused

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, state: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:
        """Keep keys and values of `state` `[B, m, H]`, which is returned; `tokens` are not read."""
        cos, sin = self.attending(state, cache)["position_embeddings"]
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            attention: Any = layer.self_attn
            projections = attention.k_proj, attention.v_proj
            key, value = (project(state).unflatten(-1, (-1, attention.head_dim)) for project in projections)
            key, _ = self.parts.rotate(*[attention.k_norm(key).transpose(1, 2)] * 2, cos, sin)
            kept.update(key, value.transpose(1, 2))
        return state

    @torch.inference_mode()
    def in_one_pass(
        self, hidden: torch.Tensor, last_token: torch.Tensor, num_tokens: int, cache: RaggedStaticCache
    ) -> torch.Tensor:
        masked = last_token.new_full((len(last_token), self.most_tokens), self.config.mask_token_id)
        block = embedding(torch.cat([last_token, masked], dim=1), self.embeddings)
        given = self.attending(block, cache)
        end = cache.lengths + self.block_size
        places = torch.arange(given["attention_mask"].shape[-1], device=end.device)
        unseen = places >= end[:, None, None, None]  # [B, 1, 1, view]
        given["attention_mask"] = torch.zeros_like(given["attention_mask"]).masked_fill(unseen, float("-inf"))
        for layer in self.layers:
            block = layer(block, **given)
        return block[:, 1 : num_tokens + 1]

    @torch.inference_mode()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(self.norm(hidden), self.output_rows)
