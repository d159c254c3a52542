"""A key/value cache in which every row of the batch has its own length.

Speculative decoding accepts a different number of tokens in every row, so after each step the rows end at different
places. `RaggedStaticCache` keeps one preallocated block per layer and one length per row. A forward pass writes behind
the lengths without moving them; `commit` then says how much of what was written is kept. Rolling back is therefore no
operation at all: whatever lies at or behind a row's length is never read, and is overwritten by the next pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from specdec_lib.models import host_memory

VIEW_MULTIPLE = 64  # attention reads a prefix of the cache, rounded up to this many positions


@dataclass
class Placement:
    """Where the next tokens go; shared by a cache and its layers, which therefore need no reference to the cache.

    (A cycle between them would keep the memory of every dropped cache until Python's garbage collector comes by.)
    """

    rows: torch.Tensor  # [B, 1]
    positions: torch.Tensor  # [B, m]
    view: int  # attention reads positions 0..view


def write_and_view(
    kept: torch.Tensor,  # [B, H, capacity, D]
    states: torch.Tensor,  # [B, H, m, D]
    rows: torch.Tensor,  # [B, 1]
    positions: torch.Tensor,  # [B, m]
    view: int,
) -> torch.Tensor:  # [B, H, view, D]
    """Write m positions of each row, and return the prefix that attention may read."""
    kept[rows, :, positions] = states.transpose(1, 2)
    return kept[:, :, :view]


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values, `[B, H, capacity, D]`, written at the positions that its cache dictates."""

    is_compileable = True
    is_sliding = False

    def __init__(self, placement: Placement, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.placement, self.keys, self.values = placement, keys, values
        self.batch_size, _, self.capacity, _ = keys.shape
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("a RaggedLayer is allocated when it is made")

    def update(
        self,
        key_states: torch.Tensor,  # [B, H, m, D]
        value_states: torch.Tensor,  # [B, H, m, D]
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # 2 x [B, H, view, D]
        """Write m positions behind each row's length and return the prefix that attention may read."""
        where = self.placement
        return (
            write_and_view(self.keys, key_states, where.rows, where.positions, where.view),
            write_and_view(self.values, value_states, where.rows, where.positions, where.view),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.placement.view, 0

    def get_seq_length(self) -> int:
        return self.placement.view

    def get_max_length(self) -> int:
        return self.capacity


class RaggedStaticCache(Cache):
    """Preallocated keys and values for a ragged batch, usable by any Hugging Face causal language model.

    Args:
        batch_size: number of rows B.
        capacity: positions held for each row; the longest prompt + new tokens + gamma is always enough.
        num_layers, num_heads, head_dim: the model's key/value geometry.

    Attributes:
        lengths: `[B]` int64, the committed positions of each row.
        max_length: an upper bound of `lengths` known to the host without asking the device.
        keys, values: `[B, num_heads, capacity, head_dim]` for each layer.
    """

    def __init__(
        self,
        *,
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
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.max_length = 0
        rows = torch.arange(batch_size, device=device)[:, None]
        self.placement = Placement(rows, rows, view=0)
        shape = (batch_size, num_heads, self.capacity, head_dim)
        kept = host_memory.zeros([shape] * 2 * num_layers, dtype, device)
        self.keys, self.values = kept[::2], kept[1::2]
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
