"""What drafts from the target's hidden states, whoever trained it: the small interface that the proposer uses.

A head reads pairs: token x[t+1] with the target's features of position t. The pair has rotary position t and index t in
the head's cache. Its output predicts token x[t+2], and stands in for the features of the next, drafted position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from specdec_lib.models.cache import LayerShape, RaggedStaticCache

if TYPE_CHECKING:
    from specdec_lib.models.engines.kernel_head import KernelHead


class HeadSizes(NamedTuple):
    """What a head's cache has room for."""

    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int


class DraftHead(nn.Module):
    """A draft that reads the target's features. Its parameters are those of its layers alone.

    Attributes:
        feature_layers: the target's layers whose outputs it reads, next to the target's last hidden state.
        context_length: tokens that a text may have.
        scored_ids: `[scored]`, the target's tokens that `scores` is about; all others are never drafted.
        embeddings: `[V, H]`, of the tokens that it reads: the target's, or its own.
        output_rows: `[scored, H]`, of the output layer: the target's, or its own.
        parallel: whether it drafts by `in_one_pass`, so that no position sees the tokens drafted before it.
        block_size, most_tokens: places that it reads in one pass, and the most that it drafts; 0 for any number.
    """

    parallel = False
    block_size = most_tokens = 0
    scored_ids: torch.Tensor
    embeddings: torch.Tensor
    output_rows: torch.Tensor

    def __init__(
        self, name: str, sizes: HeadSizes, vocab_size: int, hidden_size: int, feature_layers: Sequence[int]
    ) -> None:
        super().__init__()
        self.name, self.sizes = name, sizes
        self.vocab_size, self.hidden_size, self.feature_layers = vocab_size, hidden_size, tuple(feature_layers)
        self.context_length = 0  # each kind of head says

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def fused(self) -> KernelHead | None:
        """This head, if it drafts all tokens in one call."""
        return None

    def new_cache(self, batch_size: int, capacity: int) -> RaggedStaticCache:
        """An empty cache for `batch_size` rows of up to `capacity` pairs each."""
        shape = LayerShape(*[self.sizes.num_key_value_heads, self.sizes.head_dim] * 2)
        shapes = [shape] * self.sizes.num_layers
        return RaggedStaticCache(batch_size, capacity, shapes, dtype=self.dtype, device=self.device)

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """The target's features of m positions `[B, m, F]` to states `[B, m, H]`."""
        raise NotImplementedError

    def forward(self, tokens: torch.Tensor, state: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:
        """Run m pairs of `tokens` `[B, m]` and `state` `[B, m, H]` after each row's committed length, and commit none.

        `scores` reads the result `[B, m, H]`, which is also the state of the next drafted position.
        """
        raise NotImplementedError

    def in_one_pass(
        self, hidden: torch.Tensor, last_token: torch.Tensor, num_tokens: int, cache: RaggedStaticCache
    ) -> torch.Tensor:
        """What a parallel head makes of all drafted positions, `[B, n, H]`, which `scores` reads.

        Args:
            hidden: `[B, 1, H]`, what `forward` made of each row's newest pair, which is committed.
            last_token: `[B, 1]`, the token of that pair.
        """
        raise NotImplementedError

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., H]` to the logits of `scored_ids`, `[..., scored]`; all other tokens have -inf."""
        raise NotImplementedError
