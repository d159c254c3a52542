"""The two drafts in training, the conversations that they learn from, and how each sees a batch of them.

A student unrolls a batch into hidden states `[steps, B, T - 1, H]`: entry `[j, :, t]` predicts token t + 2 as the
(j + 1)-th token of a drafted run, that is with what the target computed up to position t - j only. The target's own
distribution for token t + 2 is in its last state at t + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import embedding
from transformers import LlamaConfig, PreTrainedModel

from specdec_lib.models.plain_draft import PlainDraft
from specdec_lib.models.shipped_head import HeadConfig, ShippedHead


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


class HeadStudent(nn.Module):
    """An EAGLE-style head that is trained on its own states too (HASS, arXiv 2408.15766; EAGLE-3, arXiv 2503.01840)."""

    def __init__(self, target: PreTrainedModel, feature_layers: tuple[int, ...], scored_ids: torch.Tensor):
        super().__init__()
        self.embeddings = (target.get_input_embeddings().weight.detach(),)  # a tuple: not a parameter of this module
        config = HeadConfig.for_target(target.config, feature_layers, len(scored_ids))
        self.draft = ShippedHead(config, self.embeddings[0])
        self.draft.scored_ids.copy_(scored_ids)
        copy_layer(self.draft, target)

    def unroll(self, batch: Batch, steps: int) -> torch.Tensor:  # [steps, B, T - 1, H]
        tokens, head = batch.tokens[:, 1:], self.draft
        state = head.fuse(batch.features[:, :-1])
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        keys, values, outputs = [], [], []
        for _ in range(steps):
            x = head.join(tokens, state)
            query, key, value = head.project(x, positions)
            keys.append(key)
            values.append(value)
            hidden = head.finish(x, unrolled_attention(query, keys, values).transpose(1, 2).flatten(2))
            outputs.append(head.normed(hidden))
            state = torch.cat([state[:, :1], hidden[:, :-1]], dim=1)
        return torch.stack(outputs)


class PlainStudent(nn.Module):
    """A small Llama: it sees tokens only, so every drafted position looks the same to it."""

    def __init__(self, target: PreTrainedModel, config: LlamaConfig, scored_ids: torch.Tensor):
        super().__init__()
        self.embeddings = (target.get_input_embeddings().weight.detach(),)
        self.draft = PlainDraft(config, len(scored_ids))
        self.draft.scored_ids.copy_(scored_ids)

    def unroll(self, batch: Batch, steps: int) -> torch.Tensor:  # [steps, B, T - 1, H]
        embedded = embedding(batch.tokens, self.embeddings[0]).float()
        hidden = self.draft.body(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, 1:]
        return hidden.expand(steps, *hidden.shape)


def layers_of_target(target: PreTrainedModel, layers: tuple[int, ...], scored_ids: torch.Tensor) -> PlainStudent:
    """A draft of the target's width that starts from some of its layers."""
    geometry = ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings")
    heads = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_parameters")
    kept = (*geometry, *heads, "bos_token_id", "eos_token_id", "pad_token_id")
    config = LlamaConfig(**{name: getattr(target.config, name) for name in kept}, num_hidden_layers=len(layers))
    config._attn_implementation = "sdpa"
    student = PlainStudent(target, config, scored_ids)
    for mine, theirs in enumerate(layers):
        student.draft.body.layers[mine].load_state_dict(target.base_model.layers[theirs].state_dict())
    student.draft.body.norm.load_state_dict(target.base_model.norm.state_dict())
    return student


@torch.no_grad()
def copy_layer(head: ShippedHead, target: PreTrainedModel) -> None:
    """Start the head's block from the target's last layer and its last norm."""
    layer = target.base_model.layers[-1]
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    head.query_key_value.weight.copy_(torch.cat([p.weight for p in projections]))
    head.attention_out.weight.copy_(attention.o_proj.weight)
    head.gate_up.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
    head.down.weight.copy_(mlp.down_proj.weight)
    head.attention_norm.copy_(layer.input_layernorm.weight)
    head.mlp_norm.copy_(layer.post_attention_layernorm.weight)
    head.output_norm.copy_(target.base_model.norm.weight)


def unrolled_attention(
    query: torch.Tensor,  # [B, H, T, D], of the newest step
    keys: list[torch.Tensor],  # a [B, H_kv, T, D] for every step so far
    values: list[torch.Tensor],
) -> torch.Tensor:  # [B, H, T, D]
    """Attention of drafting step j: what the target has seen up to t - j, then the run's own steps 1 ... j."""
    batch, heads, length, dim = query.shape
    kv_heads, last = keys[0].shape[1], len(keys) - 1
    query = query.reshape(batch, kv_heads, -1, length, dim) * dim**-0.5  # [B, H_kv, G, T, D]
    scores = (query.flatten(2, 3) @ keys[0].transpose(-1, -2)).unflatten(2, (-1, length)).float()
    index = torch.arange(length)
    scores = scores.masked_fill(index > index[:, None] - last, -1e9)
    own = [(query * shifted(key, last - step)[:, :, None]).sum(-1) for step, key in enumerate(keys) if step]
    weights = torch.cat([scores, *(s[..., None].float() for s in own)], dim=-1).softmax(-1)
    out = (weights[..., :length].flatten(2, 3).to(values[0].dtype) @ values[0]).unflatten(2, (-1, length))
    for step in range(1, len(values)):
        out = out + weights[..., length + step - 1, None] * shifted(values[step], last - step)[:, :, None]
    return out.reshape(batch, heads, length, dim)


def shifted(x: torch.Tensor, by: int) -> torch.Tensor:  # [B, H, T, D]
    """`x` moved `by` positions to the right; what falls in at the left is never used."""
    return torch.cat([x[:, :, :by], x[:, :, : x.shape[2] - by]], dim=2) if by else x
