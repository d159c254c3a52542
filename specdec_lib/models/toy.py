"""Toy language models: the next token's logits are in a table, so that every probability is known.

A toy reads the tokens of its context from the cache only, so that a stale or misplaced cache entry changes its logits.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.runner import LanguageModel


class ToyModel(nn.Module):
    """Logits of the next token: `table[a, b]` of `table` `[V, V, V]` after `... a b`. At the first position a is 0."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        vocab_size = len(table)
        self.table = nn.Parameter(table)
        self.output = nn.Linear(vocab_size, vocab_size, bias=False, dtype=table.dtype)
        nn.init.eye_(self.output.weight)
        self.base_model = self.next_logits
        self.config = SimpleNamespace(
            vocab_size=vocab_size,
            hidden_size=vocab_size,
            max_position_embeddings=4096,
            **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"), 1),
        )

    def get_output_embeddings(self) -> nn.Linear:
        return self.output

    def next_logits(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, past_key_values: RaggedStaticCache, **kwargs: object
    ) -> BaseModelOutputWithPast:
        """Write the tokens `[B, m]` into the cache as keys, read the last two of each context back."""
        written = input_ids[:, None, :, None].to(self.table.dtype)
        keys, _ = past_key_values.update(written, written, layer_idx=0)
        text = keys[:, 0, :, 0].long()  # [B, view]
        last = text.gather(1, past_key_values.placement.positions)
        before = past_key_values.slots_before()
        previous = torch.where(position_ids > 0, text.gather(1, before.clamp(min=0)), 0)
        return BaseModelOutputWithPast(last_hidden_state=self.table[previous, last])


def toy_model(
    vocab_size: int, generator: torch.Generator, *, sharpness: float = 2.0, name: str = "toy-target"
) -> LanguageModel:
    """A random toy: logits are normal with standard deviation `sharpness`."""
    table = torch.randn(vocab_size, vocab_size, vocab_size, generator=generator) * sharpness
    return LanguageModel(ToyModel(table), name)


def toy_draft(target: LanguageModel, generator: torch.Generator, *, noise: float = 1.0) -> LanguageModel:
    """A draft that resembles `target`: its table with normal noise added."""
    table = target.model.table
    return LanguageModel(ToyModel(table + torch.randn(table.shape, generator=generator) * noise), "toy-draft")
