"""A key/value cache in which every row of the batch has its own length.

Speculative decoding accepts a different number of tokens in every row, so after each step the rows end at different
places. `RaggedStaticCache` keeps one preallocated block per layer and one length per row. A forward pass writes after
the lengths without moving them; `commit` then keeps some of the written positions. Rolling back needs no operation:
what lies at or after a row's length is never read, and the next pass overwrites it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from specdec_lib.models import host_memory

VIEW_MULTIPLE = 64  # attention reads a prefix of the cache, rounded up to this many positions


@dataclass
class Placement:
    """Where the next tokens go. Layers share it with their cache, as one that refers to it would keep it alive."""

    rows: torch.Tensor  # [B, 1]
    positions: torch.Tensor  # [B, m]
    view: int  # attention reads positions 0..view


class KeysAndValues:
    """One layer's keys and values, `[B, H, capacity, D]` each, written at the positions of `placement`."""

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


class RaggedStaticCache(Cache):
    """Preallocated keys and values for a ragged batch, usable by any Hugging Face causal language model.

    `capacity` are the positions of each row; the longest prompt + new tokens + gamma is always enough.
    """

    def __init__(
        self,
        batch_size: int,
        capacity: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.capacity = -(-capacity // VIEW_MULTIPLE) * VIEW_MULTIPLE
        self.device = device
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)  # committed positions of each row
        self.max_length = 0  # an upper bound of `lengths` that the host knows without asking the device
        rows = torch.arange(batch_size, device=device)[:, None]
        self.placement = Placement(rows, rows, view=0)
        shape = (batch_size, num_heads, self.capacity, head_dim)
        blocks = host_memory.zeros([shape] * 2 * num_layers, dtype, device)
        self.keys, self.values = blocks[::2], blocks[1::2]  # [B, num_heads, capacity, head_dim] for each layer
        layers = [RaggedLayer(self.placement, *of_layer) for of_layer in zip(self.keys, self.values, strict=True)]
        super().__init__(layers=layers)

    def place(self, num_tokens: int) -> torch.Tensor:  # [B, num_tokens]
        """Choose where the next `num_tokens` tokens of each row go, and return those positions."""
        end = self.max_length + num_tokens
        assert end <= self.capacity, f"cache of {self.capacity} positions cannot take position {end}"
        self.placement.view = min(-(-end // VIEW_MULTIPLE) * VIEW_MULTIPLE, self.capacity)
        self.placement.positions = self.lengths[:, None] + torch.arange(num_tokens, device=self.device)
        return self.placement.positions

    def attention_mask(self, dtype: torch.dtype) -> torch.Tensor:  # [B, 1, m, view], 0 or -inf
        """Additive mask for the placed tokens: each sees its own row up to and including itself."""
        seen = torch.arange(self.placement.view, device=self.device) <= self.placement.positions[:, :, None]
        mask = torch.zeros(seen.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(~seen, float("-inf"))[:, None]

    def commit(self, num_tokens: torch.Tensor | int, at_most: int) -> None:
        """Keep `num_tokens` (`[B]` or one number) of the tokens just written; `at_most` bounds them on the host."""
        self.lengths += num_tokens
        self.max_length += at_most

    def set_lengths(self, lengths: torch.Tensor, max_length: int) -> None:
        """Roll every row back (or on) to `lengths` `[B]`, none of which exceeds the host's `max_length`."""
        self.lengths.copy_(lengths)
        self.max_length = max_length
