"""The forward pass of a decoder on a CPU through the C++ kernels: one call for all layers.

The kernels compute the Hugging Face model on the same weights, with float32 between the matrix products. A row's result
does not depend on the other rows, so that verification gives the logits of decoding bit for bit.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch

from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.models.cache import LayerShape, RaggedStaticCache
from specdec_lib.models.engines.engine import Engine, Step
from specdec_lib.models.engines.layers import MATRICES, DecoderLayers, embedding_scale, read_layers
from specdec_lib.models.output_layer import OwnOutput

SHORTEST_PASS = 32  # tokens: a pass over fewer takes about as long


def linear(x: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
    """x `[..., K]` bfloat16 times weight `[N, K]` bfloat16, or int8 with factors `[N]`, to float32 `[..., N]`."""
    return torch.ops.specdec_lib.linear(as_rows(x), weight, factors).unflatten(0, x.shape[:-1])


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x `[..., K]` as contiguous `[rows, K]`."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def can_multiply(*sizes: int) -> bool:
    """Whether the kernels can multiply matrices whose rows have these sizes."""
    return all(size % 32 == 0 for size in sizes)


def places_in(cache: RaggedStaticCache, positions: torch.Tensor, row: int | None = None) -> tuple[Any, ...]:
    """Keys, values, slots and rotary `positions` `[B, m]` for the kernels, after `cache.place`.

    With `row`, those of the first tokens of this row alone.
    """
    keys, values, places = cache.keys, cache.values, cache.placement.positions
    if row is not None:
        keys, values = ([kept[row : row + 1] for kept in layers] for layers in (keys, values))
        places = places[row : row + 1, : positions.shape[1]]
    return keys, values, places, positions


class KernelEngine(Engine):
    """A model on the kernels, with the weights that it has when this object is made.

    Args:
        narrow: positions of every window, in place of its own; for a trial.
    """

    name = "kernels"

    def __init__(
        self,
        body: Any,
        head: Any,
        feature_layers: tuple[int, ...],
        context_length: int,
        narrow: int | None = None,
    ):
        super().__init__(body, head, feature_layers, context_length)
        layers = read_layers(body)
        assert layers is not None, "the kernels cannot compute this model: ask can_compute first"
        if narrow is not None:
            layers = self.narrowed(layers, narrow)
        self.layers = layers
        dim = 2 * len(layers.layers[0].frequencies)
        kept = len(layers.layers[0].weights["key"]) // dim, dim
        self._shapes = [LayerShape(*kept, *kept)] * len(layers.layers)
        self.embeddings, self.embedding_scale = body.embed_tokens.weight.data, embedding_scale(body)
        self.last_norm = body.norm.weight.data
        self.output: tuple[torch.Tensor, ...] = (head.weight.data,)  # the rows that make logits; in 8 bits with factors

    @staticmethod
    def narrowed(layers: DecoderLayers, to: int) -> DecoderLayers:
        """The same with windows of at most so many positions."""
        return replace(layers, layers=[replace(each, window=min(each.window, to)) for each in layers.layers])

    @staticmethod
    def can_compute(body: Any) -> bool:
        """Whether `body` can be described and is in bfloat16 on the CPU, and this machine has the kernels."""
        return (
            KernelEngine.fits(body)
            and not why_no_kernels()
            and all(
                weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.is_contiguous()
                for weight in body.parameters()
            )
        )

    @staticmethod
    def fits(body: Any) -> bool:
        """Whether a model of this architecture and these sizes can be described, wherever its weights are."""
        layers = read_layers(body)
        if layers is None:
            return False
        first = layers.layers[0]
        matrices = (weight.shape[-1] for weight in first.weights.values() if weight.dim() == 2)
        return can_multiply(*matrices, 2 * len(first.frequencies))

    @property
    def matrices(self) -> list[tuple[torch.Tensor, ...]]:
        """Every matrix `[N, K]` that a pass multiplies with; those in 8 bits with their factors."""
        layers = self.layers.layers
        found = [[layer.weights.get(key) for key in (name, f"{name}.factors")] for layer in layers for name in MATRICES]
        return [*(tuple(part for part in each if part is not None) for each in found), self.output]

    def round_to_eight_bits(self) -> None:
        """Round every matrix to 8 bits, and let go of what the model itself has of its layers."""
        self.layers, self.output = self.layers.in_eight_bits(self.head.weight.data)
        for layer, name in itertools.product(self.body.layers, MATRICES.values()):
            weight = layer.get_submodule(name).weight
            weight.data = weight.data.new_empty(0)

    def __call__(self, tokens: torch.Tensor, cache: RaggedStaticCache, counts: torch.Tensor | None = None) -> Step:
        # Rows are computed one by one where that is less work: a pass over many tokens gains nothing from a batch.
        # Then the states of padding are zeros.
        positions, numbers = self.place(tokens, cache), [] if counts is None else counts.tolist()
        one_by_one = sum(max(number, SHORTEST_PASS) for number in numbers if number)
        if counts is None or one_by_one >= tokens.numel():
            return self._decode(tokens, places_in(cache, positions))
        hidden = self.embeddings.new_zeros(*tokens.shape, self.embeddings.shape[1])
        features = hidden.new_zeros(*tokens.shape, (len(self.feature_layers) + 1) * hidden.shape[2])
        for row, number in enumerate(numbers):
            if number > 0:
                here = slice(row, row + 1), slice(number)
                step = self._decode(tokens[here], places_in(cache, positions[here], row))
                hidden[here], features[here] = step.hidden, step.features
        return Step(hidden, features)

    def _decode(self, tokens: torch.Tensor, places: tuple[Any, ...]) -> Step:
        ends = self.embeddings, self.embedding_scale, self.last_norm
        return Step(*self.layers.native.decode(tokens.contiguous(), *ends, [*self.feature_layers], *places))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:  # float32
        if not isinstance(self.head, torch.nn.Linear | OwnOutput):
            return self.head(hidden)
        scores = linear(hidden, *self.output)
        return self.head(hidden, scores) if isinstance(self.head, OwnOutput) else scores
