"""The forward pass of a Llama-like model on a CPU through the C++ kernels: one call for all layers.

The kernels compute the Hugging Face model on the same weights, with float32 between the matrix products. A row's result
does not depend on the other rows, so that verification gives the logits of decoding bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.engines.engine import Engine, Step

SHORTEST_PASS = 32  # tokens: a pass over fewer takes about as long
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not change with the length of the text
LAYER_WEIGHTS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def linear(x: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
    """x `[..., K]` bfloat16 times weight `[N, K]` bfloat16, or int8 with factors `[N]`, to float32 `[..., N]`."""
    return torch.ops.specdec_lib.linear(as_rows(x), weight, factors).unflatten(0, x.shape[:-1])


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x `[..., K]` as contiguous `[rows, K]`."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def can_multiply(*sizes: int) -> bool:
    """Whether the kernels can multiply matrices whose rows have these sizes."""
    return all(size % 32 == 0 for size in sizes)


@dataclass(frozen=True)
class KernelLayers:
    """The weights of transformer layers, as the kernels want them."""

    weights: list[torch.Tensor]  # nine a layer, as in `LAYER_WEIGHTS`; bfloat16, or all matrices int8; used in place
    heads: int
    eps: float
    scaling: float
    inverse_frequencies: torch.Tensor  # [D / 2] float32, of the rotary embedding
    rotary_scaling: float = 1.0  # multiplies its cosines and sines
    factors: list[torch.Tensor] = field(default_factory=list)  # with int8: one float32 for each row, next to `weights`

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, cache: RaggedStaticCache) -> None:
        """Run the layers on `x` `[B * m, H]` float32, in place, with rotary positions `[B, m]`, after `cache.place`."""
        torch.ops.specdec_lib.decoder_layers(x, self.weights, self.factors, *self.arguments(positions, cache))

    def arguments(self, positions: torch.Tensor, cache: RaggedStaticCache, row: int | None = None) -> tuple[Any, ...]:
        """The kernels' further arguments; with `row`, those of the first tokens of this row alone."""
        keys, values, places = cache.keys, cache.values, cache.placement.positions
        if row is not None:
            keys, values = ([kept[row : row + 1] for kept in layers] for layers in (keys, values))
            places = places[row : row + 1, : positions.shape[1]]
        rotary = self.inverse_frequencies, self.rotary_scaling
        return keys, values, places, positions, *rotary, self.heads, self.eps, self.scaling


class KernelEngine(Engine):
    """A model on the kernels, with the weights that it has when this object is made."""

    name = "kernels"

    def __init__(self, body: Any, head: Any, feature_layers: tuple[int, ...], context_length: int):
        super().__init__(body, head, feature_layers, context_length)
        self.embeddings, self.last_norm = body.embed_tokens.weight.data, body.norm.weight.data
        self.layers = KernelLayers(
            weights=[layer.get_submodule(name).weight.data for layer in body.layers for name in LAYER_WEIGHTS],
            heads=body.config.num_attention_heads,
            eps=body.config.rms_norm_eps,
            scaling=body.layers[0].self_attn.scaling,
            inverse_frequencies=body.rotary_emb.inv_freq.float(),
            rotary_scaling=body.rotary_emb.attention_scaling,
        )

    @staticmethod
    def can_compute(body: Any) -> bool:
        """Whether `body` is a plain Llama in bfloat16 on the CPU, and this machine has the kernels."""
        config: Any = getattr(body, "config", None)
        if getattr(config, "model_type", None) != "llama" or config.hidden_act != "silu":
            return False
        head_dim = body.layers[0].self_attn.head_dim
        plain = body.rotary_emb.rope_type in STATIC_ROPE and not (config.attention_bias or config.mlp_bias)
        fits = can_multiply(config.hidden_size, config.intermediate_size, head_dim)
        on_cpu = all(
            weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.is_contiguous()
            for weight in body.parameters()
        )
        return plain and fits and on_cpu and not why_no_kernels()

    def __call__(self, tokens: torch.Tensor, cache: RaggedStaticCache, counts: torch.Tensor | None = None) -> Step:
        # Rows are computed one by one where that is less work: a pass over many tokens gains nothing from a batch.
        # Then the states of padding are zeros.
        positions, numbers = self.place(tokens, cache), [] if counts is None else counts.tolist()
        one_by_one = sum(max(number, SHORTEST_PASS) for number in numbers if number)
        if counts is None or one_by_one >= tokens.numel():
            return self._decode(tokens, self.layers.arguments(positions, cache))
        hidden = self.embeddings.new_zeros(*tokens.shape, self.embeddings.shape[1])
        features = hidden.new_zeros(*tokens.shape, (len(self.feature_layers) + 1) * hidden.shape[2])
        for row, number in enumerate(numbers):
            if number > 0:
                here = slice(row, row + 1), slice(number)
                step = self._decode(tokens[here], self.layers.arguments(positions[here], cache, row))
                hidden[here], features[here] = step.hidden, step.features
        return Step(hidden, features)

    def _decode(self, tokens: torch.Tensor, arguments: tuple[Any, ...]) -> Step:
        given = tokens.contiguous(), self.embeddings, self.layers.weights, *arguments
        return Step(*torch.ops.specdec_lib.decoder(*given, self.feature_layers, self.last_norm))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:  # float32
        return linear(hidden, self.head.weight) if isinstance(self.head, torch.nn.Linear) else self.head(hidden)
