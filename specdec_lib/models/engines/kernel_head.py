"""A draft head on the CPU kernels: its block and its output rows in 8 bits.

A draft token costs the time to read the head's weights, and 8 bits halve it. The output stays exact: verification sees
the very distributions that drafts are drawn from. `fuse_features` and `combine` stay in bfloat16, because a few of
their weights are far larger than the others of their row.
"""

from __future__ import annotations

import torch

from specdec_lib.models import host_memory
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.engines.kernels import as_rows, can_multiply, linear, places_in
from specdec_lib.models.engines.layers import DecoderLayer, DecoderLayers, EightBits, named
from specdec_lib.models.shipped_head import HeadConfig, ShippedHead


class KernelHead(ShippedHead):
    """A `ShippedHead` in bfloat16 on a CPU, with one call of the kernels for each part, or for all draft tokens."""

    @staticmethod
    def can_compute(config: HeadConfig) -> bool:
        return can_multiply(config.hidden_size, config.head_dim, config.intermediate_size)

    @property
    def fused(self) -> KernelHead:
        return self

    def prepare(self) -> None:
        """Round the weights that this head has now."""
        config, size = self.config, self.config.head_dim
        host_memory.move(self.fuse_features)
        host_memory.move(self.combine)
        matrices = [
            *self.query_key_value.weight.split([config.num_heads * size, *[config.num_key_value_heads * size] * 2]),
            self.attention_out.weight,
            *self.gate_up.weight.chunk(2),
            self.down.weight,
            self.embeddings[self.scored_ids],
        ]
        *self.block, self.output = EightBits.of_all(matrices)
        norms = {"attention_norm": self.attention_norm.data, "mlp_norm": self.mlp_norm.data}  # these stay as they are
        block = DecoderLayer(norms | named(self.block), self.inverse_frequencies())
        self.layers = DecoderLayers([block], config.num_heads, config.norm_eps, size**-0.5)

    @property
    def matrices(self) -> list[tuple[torch.Tensor, ...]]:
        """Every matrix `[N, K]` that a pass multiplies with; those in 8 bits with their factors."""
        return [(self.fuse_features.weight.data,), (self.combine.weight.data,), *self.block, self.output]

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        return linear(self.scaled(features), self.fuse_features.weight)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, state: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:
        positions, states, weight = cache.place(tokens.shape[1]), as_rows(state).float(), self.combine.weight
        ids, eps = tokens.flatten().contiguous(), self.config.norm_eps
        x = torch.ops.specdec_lib.join(ids, self.embeddings, states, eps, weight)
        self.layers.native.run(x, *places_in(cache, positions))
        return x.view(state.shape)

    @torch.inference_mode()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = as_rows(hidden)
        scores = torch.ops.specdec_lib.norm_linear(rows, self.output_norm.data, self.config.norm_eps, *self.output)
        return scores.unflatten(0, hidden.shape[:-1])

    def draft(
        self,
        text: torch.Tensor,  # [B, capacity]
        lengths: torch.Tensor,  # [B], the known tokens of each row
        num_new: torch.Tensor,  # [B], how many of them the cache does not hold yet
        features: torch.Tensor,  # [B, m, F], of the positions before the new tokens; later ones are ignored
        cache: RaggedStaticCache,
        temperature: float,
        uniforms: torch.Tensor,  # [B, gamma] float64
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, gamma], [B, gamma, V]
        """All gamma draft tokens and their distributions in one call."""
        weights = self.feature_scale.data, self.fuse_features.weight.data, self.embeddings, self.combine.weight.data
        outputs = self.output_norm.data, *self.output, self.scored_ids
        kept = cache.keys[0], cache.values[0]
        given = text, lengths, num_new, features, *weights, *kept, *outputs, temperature, uniforms.contiguous()
        return self.layers.native.draft(*given)
