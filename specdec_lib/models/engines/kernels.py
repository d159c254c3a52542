"""The forward pass of a Llama-like model on a CPU through the C++ kernels: one call for all layers.

It computes what the Hugging Face model computes, on the same weights, with float32 between the matrix products. A
row's result does not depend on the rows beside it, so that verification gives the logits of decoding bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.models.cache import RaggedStaticCache

WORTH_A_PASS = 32  # tokens: a pass over fewer takes hardly less time
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not change with the length of the text
LAYER_WEIGHTS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def linear(x: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
    """x `[..., K]` bfloat16 on the CPU times weight `[N, K]`, to float32 `[..., N]`.

    Args:
        weight: bfloat16, or int8 with `factors` `[N]` float32 for its rows.
    """
    return torch.ops.specdec_lib.linear(_rows(x), weight, factors).unflatten(0, x.shape[:-1])


def norm_linear(
    x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor, factors: torch.Tensor | None = None
) -> torch.Tensor:
    """The same of x `[..., K]` float32 after RMSNorm with `norm_weight` `[K]`."""
    return torch.ops.specdec_lib.norm_linear(_rows(x), norm_weight, eps, weight, factors).unflatten(0, x.shape[:-1])


def join(
    tokens: torch.Tensor, embeddings: torch.Tensor, states: torch.Tensor, eps: float, weight: torch.Tensor
) -> torch.Tensor:
    """Embeddings of `tokens` `[B, m]` beside `states` `[B, m, H]`, each after RMSNorm, times `weight` `[H, 2 H]`.

    Returns `[B, m, H]` float32.
    """
    rows = _rows(states).float()
    return torch.ops.specdec_lib.join(tokens.flatten().contiguous(), embeddings, rows, eps, weight).view(states.shape)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def fits_kernels(*sizes: int) -> bool:
    """Whether the kernels can multiply matrices with rows of these sizes."""
    return all(size % 32 == 0 for size in sizes)


class FusedLayers:
    """Transformer layers as the kernels want them.

    Args:
        weights: nine tensors a layer, in the order of `LAYER_WEIGHTS`; bfloat16, or all matrices int8; used in place.
        factors: as many, if the matrices are int8: those of each one's rows, float32.
        inverse_frequencies: `[D / 2]`, of the rotary embedding; `rotary_scaling` multiplies its cosines and sines.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        *,
        factors: Sequence[torch.Tensor] = (),
        heads: int,
        eps: float,
        scaling: float,
        inverse_frequencies: torch.Tensor,
        rotary_scaling: float = 1.0,
    ):
        self.weights, self.factors = list(weights), list(factors)
        self.heads, self.eps, self.scaling = heads, eps, scaling
        self.inverse_frequencies, self.rotary_scaling = inverse_frequencies.float(), rotary_scaling

    def __call__(
        self,
        x: torch.Tensor,  # [B * m, H] float32, changed in place
        positions: torch.Tensor,  # [B, m], what the rotary embedding sees
        cache: RaggedStaticCache,
    ) -> None:
        """Run the layers behind each row's committed length; `cache.place` has been called."""
        torch.ops.specdec_lib.decoder_layers(x, self.weights, self.factors, *self.where(positions, cache))

    def where(self, positions: torch.Tensor, cache: RaggedStaticCache, row: int | None = None) -> tuple[Any, ...]:
        """What the kernels are told beside tokens and weights; of one row only, its first tokens of these positions."""
        rotary = self.inverse_frequencies, self.rotary_scaling
        places = cache.keys, cache.values, cache.placement.positions
        if row is not None:
            keys, values = ([kept[row : row + 1] for kept in layers] for layers in places[:2])
            places = keys, values, cache.placement.positions[row : row + 1, : positions.shape[1]]
        return *places, positions, *rotary, self.heads, self.eps, self.scaling


class FusedBody:
    """A Hugging Face model body, from tokens to hidden states, on the weights that it had when this was made."""

    def __init__(self, body: Any):
        self.embeddings, self.last_norm = body.embed_tokens.weight.data, body.norm.weight.data
        self.layers = FusedLayers(
            [layer.get_submodule(name).weight.data for layer in body.layers for name in LAYER_WEIGHTS],
            heads=body.config.num_attention_heads,
            eps=body.config.rms_norm_eps,
            scaling=body.layers[0].self_attn.scaling,
            inverse_frequencies=body.rotary_emb.inv_freq,
            rotary_scaling=body.rotary_emb.attention_scaling,
        )

    @classmethod
    def of(cls, body: Any) -> FusedBody | None:
        """None if the kernels cannot compute `body` on this machine."""
        return cls(body) if _is_plain_llama(body) and not why_no_kernels() else None

    def __call__(
        self,
        tokens: torch.Tensor,  # [B, m]
        positions: torch.Tensor,  # [B, m], what the rotary embedding sees
        cache: RaggedStaticCache,
        taps: Sequence[int] = (),  # layers whose outputs are features too
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, m, H], [B, m, (len(taps) + 1) * H]
        """Hidden states, and features, of which they are the last; `cache.place` has been called."""
        return self._decode(tokens, taps, self.layers.where(positions, cache))

    def without_padding(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: RaggedStaticCache,
        taps: Sequence[int],
        counts: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of the first `counts` tokens of each row, and zeros behind them.

        Row by row where that is less to compute: a pass over many tokens gains nothing from a batch.
        """
        if sum(max(count, WORTH_A_PASS) for count in counts if count) >= tokens.numel():
            return self(tokens, positions, cache, taps)
        hidden = self.embeddings.new_zeros(*tokens.shape, self.embeddings.shape[1])
        features = hidden.new_zeros(*tokens.shape, (len(taps) + 1) * hidden.shape[2])
        for row, count in enumerate(counts):
            if count > 0:
                here = slice(row, row + 1), slice(count)
                where = self.layers.where(positions[here], cache, row)
                hidden[here], features[here] = self._decode(tokens[here], taps, where)
        return hidden, features

    def _decode(
        self, tokens: torch.Tensor, taps: Sequence[int], where: tuple[Any, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self.embeddings, self.layers.weights
        return torch.ops.specdec_lib.decoder(tokens.contiguous(), *weights, *where, taps, self.last_norm)


def _is_plain_llama(body: Any) -> bool:
    config: Any = getattr(body, "config", None)
    if getattr(config, "model_type", None) != "llama" or config.hidden_act != "silu":
        return False
    if body.rotary_emb.rope_type not in STATIC_ROPE:
        return False
    weights = list(body.parameters())
    head_dim = body.layers[0].self_attn.head_dim
    return (
        not (config.attention_bias or config.mlp_bias)
        and all(w.dtype == torch.bfloat16 and w.device.type == "cpu" and w.is_contiguous() for w in weights)
        and fits_kernels(config.hidden_size, config.intermediate_size, head_dim)
    )
