"""A key/value cache in which every row of the batch has its own length.

Speculative decoding accepts a different number of tokens in every row, so after each step the rows end at different
places. `RaggedStaticCache` keeps one preallocated block per layer and one length per row. A forward pass writes after
the lengths without moving them; `commit` then keeps some of the written positions. Rolling back needs no operation:
what lies at or after a row's length is never read, and the next pass overwrites it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from specdec_lib.models import host_memory
from specdec_lib.models.attention import ragged_mask

VIEW_MULTIPLE = 64  # attention reads a prefix of the cache, rounded up to this many positions


class LayerShape(NamedTuple):
    """What a layer keeps of each token: heads and widths of its keys and of its values."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int


class Fork(NamedTuple):
    """Two chains that continue each row's text, in slots after one another: both begin at position `start`.

    The second one's slots begin `length` after the first one's. It has the same positions, and does not see the first.
    """

    start: torch.Tensor  # [B]
    length: int  # tokens of each chain
    apart: int = 1  # how far apart the slots of a pass's tokens are: 1, or `length` for one token of each chain

    def skipped(self, slots: torch.Tensor) -> torch.Tensor:  # [B, m] -> [B, m]
        """How much a token's position is below its slot."""
        return (slots >= self.start[:, None] + self.length) * self.length

    def positions_and_hidden(self, slots: torch.Tensor) -> torch.Tensor:  # [B, m] -> [B, m, 3]
        """Of each token its position, and the first and the last (exclusive) of the slots that are hidden from it."""
        skipped, start = self.skipped(slots), self.start[:, None].expand_as(slots)
        return torch.stack([slots - skipped, start, start + skipped], dim=2)


@dataclass
class Placement:
    """Where the next tokens go. Layers share it with their cache, as one that refers to it would keep it alive."""

    rows: torch.Tensor  # [B, 1]
    positions: torch.Tensor  # [B, m], slots in the cache; of a text without a fork they are its positions
    view: int  # attention reads positions 0..view
    fork: Fork | None = None


class KeysAndValues:
    """One layer's keys `[B, H, capacity, D]` and values, written at the positions of `placement`."""

    def __init__(self, placement: Placement, keys: torch.Tensor, values: torch.Tensor):
        self.placement, self.keys, self.values = placement, keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write m positions of each row, `[B, H, m, D]`; returns the prefixes to read, `[B, H, view, D]`."""
        where = self.placement
        self.keys[where.rows, :, where.positions] = key_states.transpose(1, 2)
        self.values[where.rows, :, where.positions] = value_states.transpose(1, 2)
        return self.keys[:, :, : where.view], self.values[:, :, : where.view]


class RaggedLayer(KeysAndValues, CacheLayerMixin):
    """The same with what transformers asks of a layer in a cache."""

    is_compileable = True
    is_sliding = False

    def __init__(self, placement: Placement, keys: torch.Tensor, values: torch.Tensor):
        CacheLayerMixin.__init__(self)
        KeysAndValues.__init__(self, placement, keys, values)
        self.batch_size, _, self.capacity, _ = keys.shape
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("a RaggedLayer is allocated when it is made")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.placement.view, 0

    def get_seq_length(self) -> int:
        return self.placement.view

    def get_max_length(self) -> int:
        return self.capacity


class RaggedCache:
    """How many positions of each row are committed, of at most `capacity`."""

    def __init__(self, batch_size: int, capacity: int, device: torch.device):
        self.capacity = -(-capacity // VIEW_MULTIPLE) * VIEW_MULTIPLE
        self.device = device
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)  # committed positions of each row
        self.max_length = 0  # an upper bound of `lengths` that the host knows without asking the device

    def commit(self, num_tokens: torch.Tensor | int, at_most: int) -> None:
        """Keep `num_tokens` (`[B]` or one number) of the tokens just written; `at_most` bounds them on the host."""
        self.lengths += num_tokens
        self.max_length += at_most

    def set_lengths(self, lengths: torch.Tensor, max_length: int) -> None:
        """Roll every row back (or on) to `lengths` `[B]`, none of which exceeds the host's `max_length`."""
        self.lengths.copy_(lengths)
        self.max_length = max_length

    def check_room(self, num_tokens: int) -> None:
        """Whether `num_tokens` more fit into each row."""
        end = self.max_length + num_tokens
        assert end <= self.capacity, f"cache of {self.capacity} positions cannot take position {end}"


class RaggedStaticCache(RaggedCache, Cache):
    """Preallocated keys and values for a ragged batch, usable by any Hugging Face model that attends by `attention.py`.

    `capacity` are the positions of each row; the longest prompt + new tokens + gamma is always enough. `shapes` has one
    entry for each layer, None for a layer that reads another one's keys and values.
    """

    def __init__(
        self,
        batch_size: int,
        capacity: int,
        shapes: Sequence[LayerShape | None],
        dtype: torch.dtype,
        device: torch.device,
    ):
        RaggedCache.__init__(self, batch_size, capacity, device)
        rows = torch.arange(batch_size, device=device)[:, None]
        self.placement = Placement(rows, rows, view=0)
        kept = [shape for shape in shapes if shape is not None]
        sizes = [(batch_size, *each) for shape in kept for each in _blocks(shape, self.capacity)]
        self.whole = len(set(sizes)) == 1  # then all keys and values are slices of one tensor, to be moved at once
        shapes_made = [(len(sizes), *sizes[0])] if self.whole else sizes
        self.blocks = host_memory.zeros(shapes_made, dtype, device)
        blocks = [*self.blocks[0].unbind()] if self.whole else self.blocks
        self.keys, self.values = blocks[::2], blocks[1::2]  # of each layer that keeps any
        pairs = zip(self.keys, self.values, strict=True)
        layers = [RaggedLayer(self.placement, *next(pairs)) if shape else DummyLayer() for shape in shapes]
        Cache.__init__(self, layers=layers)

    def of_first_layers(self, num_layers: int) -> RaggedStaticCache:
        """This cache as a model of the first `num_layers` layers uses it: the same lengths, keys and values."""
        part = copy.copy(self)
        for name in ("keys", "values", "layers"):
            setattr(part, name, getattr(self, name)[:num_layers])
        return part

    def place(self, num_tokens: int) -> torch.Tensor:  # [B, num_tokens]
        """Choose where the next `num_tokens` tokens of each row go, and return their positions in the text."""
        where, fork = self.placement, self.placement.fork
        apart = fork.apart if fork else 1
        reach = (num_tokens - 1) * apart + 1
        self.check_room(reach)
        end = self.max_length + reach
        where.view = min(-(-end // VIEW_MULTIPLE) * VIEW_MULTIPLE, self.capacity)
        where.positions = self.lengths[:, None] + torch.arange(0, reach, apart, device=self.device)
        return self.text_positions()

    def text_positions(self) -> torch.Tensor:  # [B, m]
        """The positions in the text of the placed tokens."""
        slots, fork = self.placement.positions, self.placement.fork
        return slots - fork.skipped(slots) if fork else slots

    @contextmanager
    def forked(self, fork: Fork) -> Iterator[None]:
        """Within this block, what is placed continues two chains."""
        self.placement.fork = fork
        try:
            yield
        finally:
            self.placement.fork = None

    def slots_before(self) -> torch.Tensor:  # [B, m]
        """The slot of the token before each placed one."""
        slots, fork = self.placement.positions, self.placement.fork
        begins = slots == fork.start[:, None] + fork.length if fork else torch.zeros_like(slots, dtype=torch.bool)
        return slots - 1 - begins * (fork.length if fork else 0)

    def keep_chain(self, second: torch.Tensor) -> None:  # [B] bool
        """Move the keys and values of the second chain to the slots of the first one, in the rows that are marked."""
        rows, fork = self.placement.rows, self.placement.fork
        assert fork, "there is one chain"
        to = fork.start[:, None] + torch.arange(fork.length, device=self.device)
        source = to + fork.length * second[:, None]
        for block in self.blocks:
            whole = block if self.whole else block[None]
            whole[:, rows, :, to] = whole[:, rows, :, source]

    def attention_mask(self, dtype: torch.dtype) -> torch.Tensor:  # [B, 1, m, view], 0 or -inf
        """Additive mask for the placed tokens: each sees its own row up to and including itself."""
        where = self.placement
        batch_size, count = where.positions.shape
        return ragged_mask(batch_size, count, where.view, self.get_query_offset(), dtype=dtype)

    def get_query_offset(self, layer_idx: int = 0) -> torch.Tensor:  # [B, m], after a fork [B, m, 3]
        """Where the placed tokens are and what is hidden from them, for the masks that a model's own code asks for."""
        where = self.placement
        return where.fork.positions_and_hidden(where.positions) if where.fork else where.positions

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.placement.view, 0


def _blocks(shape: LayerShape, capacity: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The sizes of a layer's keys and values for one row."""
    return (shape.key_heads, capacity, shape.key_dim), (shape.value_heads, capacity, shape.value_dim)


class ShapesCache(RaggedStaticCache):
    """A cache for the first token of one row that keeps nothing but the shape of each layer."""

    def __init__(self, device: torch.device):
        super().__init__(1, 1, [], torch.float32, device)
        self.found: dict[int, LayerShape] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (_, key_heads, _, key_dim), (_, value_heads, _, value_dim) = key_states.shape, value_states.shape
        self.found[layer_idx] = LayerShape(key_heads, key_dim, value_heads, value_dim)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def shapes(self) -> list[LayerShape | None]:
        """One for each layer up to the last that keeps anything."""
        return [self.found.get(layer) for layer in range(1 + max(self.found, default=-1))]
