"""Shards of the target's conversations, as batches that a draft learns from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file


@dataclass(frozen=True)
class Batch:
    """B conversations of T tokens; row t of the features was computed from token t and predicts token t + 1."""

    tokens: torch.Tensor  # [B, T] int64
    sampled: torch.Tensor  # [B, T] bool, the target chose this token
    answer: torch.Tensor  # [B, T] bool, ... as the assistant
    features: torch.Tensor  # [B, T, F] bfloat16, chosen layers' states, then the last one

    def rows(self, count: int) -> Batch:
        """The first `count` conversations."""
        return Batch(*(getattr(self, field.name)[:count] for field in fields(self)))

    def last_state(self, hidden_size: int) -> torch.Tensor:  # [B, T, H]
        """What the target's output layer read: its distribution is softmax(last_state @ embeddings.T)."""
        return self.features[..., -hidden_size:]


class Corpus:
    """All shards that `write_corpus` wrote, memory-mapped; the last one is held out. ValueError for fewer than two.

    Args:
        turn_start: id of the token that opens a turn.
        assistant: id of the first token after it in the assistant's turns.
    """

    def __init__(self, folder: Path, turn_start: int, assistant: int):
        paths = sorted(folder.glob("[0-9]*.safetensors"))
        if len(paths) < 2:
            raise ValueError(f"{folder} holds {len(paths)} shards, but training needs two: sample more")
        self.shards = [load_file(path) for path in paths]
        self.turn_start, self.assistant = turn_start, assistant
        self.held_out = self._batch(len(paths) - 1, torch.arange(len(self.shards[-1]["tokens"])))

    @property
    def num_tokens(self) -> int:
        """Tokens to learn from: chosen by the target, not held out."""
        return sum(int(shard["sampled"].sum()) for shard in self.shards[:-1])

    def rank_tokens(self, embeddings: torch.Tensor, positions: int = 24576) -> torch.Tensor:  # [V]
        """All tokens by their mean probability over the target's distributions, the most likely first.

        About `positions` distributions are averaged, with `embeddings` `[V, H]` as output rows.
        """
        stride = max(1, self.num_tokens // positions)
        total = torch.zeros(len(embeddings))
        for shard in range(len(self.shards) - 1):
            batch = self._batch(shard, torch.arange(len(self.shards[shard]["tokens"])))
            states = batch.last_state(embeddings.shape[1])[:, :-1][batch.answer[:, 1:]]
            for chunk in states[::stride].split(256):
                total += torch.softmax((chunk @ embeddings.T).float(), dim=-1).sum(0)
        return total.argsort(descending=True)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Endless shuffled batches; every row of a batch comes from the same shard."""
        rows = len(self.shards[0]["tokens"])
        per_shard = rows // batch_size
        while True:
            orders = [torch.randperm(rows, generator=generator) for _ in self.shards[:-1]]
            for pick in torch.randperm(per_shard * len(orders), generator=generator).tolist():
                shard, start = pick // per_shard, pick % per_shard * batch_size
                yield self._batch(shard, orders[shard][start : start + batch_size])

    def _batch(self, shard: int, rows: torch.Tensor) -> Batch:
        data = self.shards[shard]
        tokens, sampled = data["tokens"][rows].long(), data["sampled"][rows]
        return Batch(tokens, sampled, sampled & self._assistant_turns(tokens), data["features"][rows])

    def _assistant_turns(self, tokens: torch.Tensor) -> torch.Tensor:  # [B, T] bool
        index = torch.arange(tokens.shape[1]).expand_as(tokens)
        opened = torch.where(tokens == self.turn_start, index, 0).cummax(dim=1).values
        role = tokens.gather(1, (opened + 1).clamp_max(tokens.shape[1] - 1))
        return role == self.assistant
