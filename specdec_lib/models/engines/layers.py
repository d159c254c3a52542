"""What the layers of a decoder are made of, as one description: the C++ kernels compute what it says, for any family.

It is read from the modules of a Hugging Face model. Of the families in `NORM_OFFSETS` it can say everything. A model of
another family, or with a weight that has no place in the description, runs without the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from transformers.activations import ACT2FN

from specdec_lib.models import host_memory

SILU = (1.0, 0.0)
_GELU = 2 * math.sqrt(2 / math.pi)
ACTIVATIONS = {  # slope and curve of x / (1 + e^-(slope x + curve x^3))
    type(ACT2FN["silu"]): SILU,
    type(ACT2FN["gelu_pytorch_tanh"]): (_GELU, 0.044715 * _GELU),
}
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # frequencies that do not change with the length of the text
NORM_OFFSETS = {  # families, by their `model_type`, and what an RMSNorm of theirs adds to its weight
    **dict.fromkeys(("llama", "internlm3", "iquestcoder", "mistral", "ministral", "cwm"), 0.0),
    **dict.fromkeys(("qwen2", "qwen3", "smollm3", "granite", "seed_oss"), 0.0),
    **dict.fromkeys(("gemma", "gemma3_text"), 1.0),
}
MATRICES = {
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
NORMS = {
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm",
}  # fmt: skip
NORMS_AFTER = {  # where attention and MLP have norms after them too
    "attention_out_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}  # fmt: skip


class EightBits(NamedTuple):
    """A weight `[N, K]` in 8 bits: row i is factors[i] times integers from -127 to 127."""

    numbers: torch.Tensor  # [N, K] int8
    factors: torch.Tensor  # [N] float32

    @classmethod
    def of(cls, weight: torch.Tensor) -> EightBits:
        """Round `weight` `[N, K]` to the nearest."""
        exact = weight.float()
        factors = (exact.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        return cls((exact / factors[:, None]).round().to(torch.int8), factors)

    @classmethod
    def of_all(cls, weights: Sequence[torch.Tensor]) -> list[EightBits]:
        """Round each of them, into one block of huge pages."""
        places = host_memory.zeros([weight.shape for weight in weights], torch.int8, weights[0].device)
        rounded = (cls.of(weight) for weight in weights)
        return [cls(place.copy_(each.numbers), each.factors) for place, each in zip(places, rounded, strict=True)]


@dataclass(frozen=True)
class DecoderLayer:
    """One layer: `weights` has the matrices and norms that it has, by the names above, in place.

    Matrices are bfloat16, or all int8 with a float32 "<matrix>.factors" each; "<matrix>.bias" is there if it has one.
    """

    weights: Mapping[str, torch.Tensor]
    frequencies: torch.Tensor  # [D / 2] float32, of the rotary embedding; zeros where there is none
    rotary_scaling: float = 1.0  # multiplies its cosines and sines
    window: int = 0  # positions that a token sees, its own the last of them; 0: all before it


@dataclass(frozen=True)
class DecoderLayers:
    """All layers of a decoder, and what they share."""

    layers: list[DecoderLayer]
    heads: int
    eps: float  # of all norms
    scaling: float  # of the scores of attention
    norm_offset: float = 0.0  # what a norm adds to its weight
    residual: float = 1.0  # multiplies what attention and MLP add to the state
    activation: tuple[float, float] = SILU  # one of `ACTIVATIONS`

    def in_eight_bits(self, output: torch.Tensor) -> tuple[DecoderLayers, EightBits]:
        """The same with every matrix rounded to 8 bits, and so the rows `[V, H]` of the output layer."""
        matrices = [layer.weights[name] for layer in self.layers for name in MATRICES]
        *rounded, rows = EightBits.of_all([*matrices, output])
        count = len(MATRICES)
        parts = (rounded[start : start + count] for start in range(0, len(rounded), count))
        layers = [
            replace(each, weights={**each.weights, **named(part)})
            for each, part in zip(self.layers, parts, strict=True)
        ]
        return replace(self, layers=layers), rows

    @property
    def weights(self) -> list[torch.Tensor]:
        return [weight for layer in self.layers for weight in layer.weights.values()]

    @cached_property
    def native(self) -> Any:
        """The same as the kernels have it; RuntimeError if shapes or types do not fit."""
        slope, curve = self.activation
        shared = {"scaling": self.scaling, "norm_offset": self.norm_offset, "residual": self.residual}
        made = torch.classes.specdec_lib.Layers(heads=self.heads, eps=self.eps, **shared, slope=slope, curve=curve)
        for layer in self.layers:
            made.add(dict(layer.weights), layer.frequencies, layer.rotary_scaling, layer.window)
        return made


def named(matrices: Sequence[EightBits]) -> dict[str, torch.Tensor]:
    """The matrices of a layer in 8 bits, in the order of `MATRICES`, as its `weights` have them."""
    numbers = {name: each.numbers for name, each in zip(MATRICES, matrices, strict=True)}
    return numbers | {f"{name}.factors": each.factors for name, each in zip(MATRICES, matrices, strict=True)}


def read_layers(body: Any) -> DecoderLayers | None:
    """The layers of a model's body as a description; None if it cannot say everything about them."""
    config: Any = getattr(body, "config", None)
    offset = NORM_OFFSETS.get(getattr(config, "model_type", ""))
    if offset is None or not all(layer.mlp.act_fn.__class__ in ACTIVATIONS for layer in body.layers):
        return None
    ropes = body.rotary_emb.rope_type
    if not set(ropes.values() if isinstance(ropes, dict) else [ropes]) <= STATIC_ROPE:
        return None
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "use_bidirectional_attention", False):
        return None
    first = body.layers[0]
    read = DecoderLayers(
        layers=[_read_layer(body, layer) for layer in body.layers],
        heads=config.num_attention_heads,
        eps=float(config.rms_norm_eps),
        scaling=float(first.self_attn.scaling),
        norm_offset=offset,
        residual=float(getattr(first, "residual_multiplier", 1.0)),
        activation=ACTIVATIONS[first.mlp.act_fn.__class__],
    )
    outside = 2  # the embedding and the last norm
    is_whole = len(read.weights) + outside == sum(1 for _ in body.parameters())
    return read if is_whole and 2 * read.layers[0].frequencies.numel() == first.self_attn.head_dim else None


def _read_layer(body: Any, layer: Any) -> DecoderLayer:
    norms = NORMS | (NORMS_AFTER if hasattr(layer, "post_feedforward_layernorm") else {})
    modules, weights = dict(layer.named_modules()), {}
    for name, where in (MATRICES | norms).items():
        if where in modules:
            weights[name] = modules[where].weight.data
            if getattr(modules[where], "bias", None) is not None:
                weights[f"{name}.bias"] = modules[where].bias.data
    attention, rotary, config = layer.self_attn, body.rotary_emb, body.config
    of_kind = f"{attention.layer_type}_" if isinstance(rotary.rope_type, dict) else ""
    frequencies, scaling = (getattr(rotary, of_kind + name) for name in ("inv_freq", "attention_scaling"))
    frequencies = frequencies.float()
    if not getattr(attention, "use_rope", True):
        frequencies, scaling = torch.zeros_like(frequencies), 1.0
    # Mistral's attention looks its window up in the config
    window = getattr(config if config.model_type == "mistral" else attention, "sliding_window", None)
    return DecoderLayer(weights, frequencies, float(scaling), window or 0)


def embedding_scale(body: Any) -> float:
    """What multiplies the embeddings of tokens, in the precision in which the model itself has it."""
    of_table = getattr(body.embed_tokens, "embed_scale", None)
    if of_table is not None:
        return float(of_table.to(body.embed_tokens.weight.dtype))
    return float(getattr(body, "embedding_multiplier", 1.0))
