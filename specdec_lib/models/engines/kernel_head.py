"""A draft head as the CPU kernels compute it: its block and its output rows in 8 bits.

A draft token costs what it takes to read the head's weights. Whatever they are rounded to, they are the draft's: the
distributions that tokens are drawn from are those that verification is told, so that the output stays the target's. In
8 bits half as much of them is read. What joins tokens and states stays in bfloat16: a few of its weights are far larger
than the others of their row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from specdec_lib.models import host_memory
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.engines import kernels as fused

if TYPE_CHECKING:
    from specdec_lib.models.draft_head import DraftHead


class EightBits(NamedTuple):
    """A weight `[N, K]`: row i is factors[i] times whole numbers from -127 to 127."""

    numbers: torch.Tensor  # [N, K] int8
    factors: torch.Tensor  # [N] float32

    @classmethod
    def of(cls, weight: torch.Tensor) -> EightBits:
        """The nearest to `weight` `[N, K]`."""
        exact = weight.float()
        factors = (exact.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        return cls((exact / factors[:, None]).round().to(torch.int8), factors)


class FusedHead:
    """What `head`, whose weights are in bfloat16 on a CPU, computes, with one call of the kernels for each part.

    The weights in 8 bits are those that it had when this was made.
    """

    def __init__(self, head: DraftHead):
        config = head.config
        self.eps, self.embeddings, self.scored_ids = config.norm_eps, head.embeddings, head.scored_ids
        host_memory.move(head.fuse_features)
        host_memory.move(head.combine)
        self.fuse_weight, self.combine_weight = head.fuse_features.weight.data, head.combine.weight.data
        self.feature_scale, self.output_norm = head.feature_scale.data, head.output_norm.data
        heads, size = config.num_heads, config.head_dim
        query_key_value = head.query_key_value.weight.split([heads * size, *[config.num_key_value_heads * size] * 2])
        matrices = [*query_key_value, head.attention_out.weight, *head.gate_up.weight.chunk(2), head.down.weight]
        matrices.append(head.embeddings[head.scored_ids])
        *self.parts, self.output = parts = _in_huge_pages([EightBits.of(weight) for weight in matrices])
        none = torch.empty(0)
        layer = [(head.attention_norm.data, none), *parts[:4], (head.mlp_norm.data, none), *parts[4:7]]
        self.layers = fused.FusedLayers(
            [weight for weight, _ in layer],
            factors=[factors for _, factors in layer],
            heads=heads,
            eps=config.norm_eps,
            scaling=size**-0.5,
            inverse_frequencies=head.inverse_frequencies(),
        )

    @staticmethod
    def fits(head: DraftHead) -> bool:
        """Whether the kernels can multiply with its matrices."""
        return fused.fits_kernels(*(weight.shape[1] for weight in head.parameters() if weight.dim() == 2))

    @property
    def matrices(self) -> list[tuple[torch.Tensor, ...]]:
        """All that it multiplies with: `[N, K]`, those of 8 bits with their factors."""
        return [(self.fuse_weight,), (self.combine_weight,), *self.parts, self.output]

    def fuse(self, scaled: torch.Tensor) -> torch.Tensor:
        """The scaled features of m positions `[B, m, F]` to states `[B, m, H]`."""
        return fused.linear(scaled, self.fuse_weight)

    def __call__(
        self, tokens: torch.Tensor, state: torch.Tensor, positions: torch.Tensor, cache: RaggedStaticCache
    ) -> torch.Tensor:
        """m pairs of `tokens` `[B, m]` and `state` `[B, m, H]` at `positions` `[B, m]` to `[B, m, H]`."""
        x = fused.join(tokens, self.embeddings, state, self.eps, self.combine_weight)
        self.layers(x.flatten(0, 1), positions, cache)
        return x

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., H]` to the logits of the scored tokens `[..., scored]`."""
        return fused.norm_linear(hidden, self.output_norm, self.eps, *self.output)

    def draft(
        self,
        text: torch.Tensor,  # [B, capacity]
        lengths: torch.Tensor,  # [B], its known tokens
        num_new: torch.Tensor,  # [B], how many of them the cache does not hold yet
        features: torch.Tensor,  # [B, m, F], of what comes before each of those, and anything behind that
        cache: RaggedStaticCache,
        temperature: float,
        uniforms: torch.Tensor,  # [B, gamma] float64
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, gamma], [B, gamma, V]
        """All gamma draft tokens and their distributions in one call."""
        return torch.ops.specdec_lib.draft(
            text,
            lengths,
            num_new,
            features,
            self.feature_scale,
            self.fuse_weight,
            self.embeddings,
            self.combine_weight,
            self.layers.weights,
            self.layers.factors,
            [*cache.keys, *cache.values],
            self.layers.inverse_frequencies,
            self.layers.heads,
            self.eps,
            self.layers.scaling,
            self.output_norm,
            *self.output,
            self.scored_ids,
            temperature,
            uniforms.contiguous(),
        )


def _in_huge_pages(weights: Sequence[EightBits]) -> list[EightBits]:
    places = host_memory.zeros([w.numbers.shape for w in weights], torch.int8, weights[0].numbers.device)
    return [EightBits(place.copy_(w.numbers), w.factors) for place, w in zip(places, weights, strict=True)]
