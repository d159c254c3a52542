"""Plain drafts: small Llama models with the target's tokens, width and embedding.

Only the layers are shipped. In this library the draft scores the most frequent tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn.functional import linear

from specdec_lib.models import host_memory
from specdec_lib.models.attention import our_attention
from specdec_lib.models.engines import kernels
from specdec_lib.models.loading.weights import fill_draft, read_draft, save_draft
from specdec_lib.models.runner import LanguageModel


class ScoredRows(nn.Module):
    """An output layer that scores some tokens of the vocabulary and gives -inf to the others."""

    scored_ids: torch.Tensor

    def __init__(self, embeddings: torch.Tensor, scored_ids: torch.Tensor):  # [V, H], [scored]
        super().__init__()
        self.vocab_size = len(embeddings)
        self.weight = nn.Parameter(embeddings[scored_ids], requires_grad=False)
        self.register_buffer("scored_ids", scored_ids)
        self.multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # [..., H] -> [..., V]
        scores = self.multiply(hidden, self.weight)
        full = scores.new_full((*hidden.shape[:-1], self.vocab_size), float("-inf"))
        return full.index_copy_(-1, self.scored_ids, scores)


class PlainDraft(nn.Module):
    """The shipped part of a plain draft: layers, last norm and the scored ids."""

    scored_ids: torch.Tensor

    def __init__(self, config: transformers.LlamaConfig, num_scored: int):
        super().__init__()
        self.config = config
        self.body = transformers.LlamaModel(config)
        self.body.embed_tokens = nn.Identity()  # the target's is used
        self.register_buffer("scored_ids", torch.arange(num_scored))

    def save(self, folder: Path) -> None:
        """Write weights (bfloat16) and config, without what belongs to the target."""
        settings = {"llama": self.config.to_diff_dict(), "num_scored": len(self.scored_ids)}
        save_draft(self, folder, "plain_draft", settings)


def load_plain_draft(folder: Path, target: LanguageModel) -> LanguageModel:
    """The draft in `folder`, scoring the frequent tokens only; ValueError for bad files or another target."""
    model, scored_ids = _with_embedding(folder, target, tie_word_embeddings=False, attn_implementation=our_attention())
    model.lm_head = rows = ScoredRows(model.model.embed_tokens.weight, scored_ids)
    host_memory.move(rows)
    language_model = LanguageModel(model, name=Path(folder).name, compiled=target.compiled)
    if language_model.engine == "kernels":
        rows.multiply = kernels.linear
    return language_model


def export_plain_draft(folder: Path, out: Path, target: LanguageModel) -> None:
    """Write the draft in `folder` as an ordinary checkpoint that scores all tokens."""
    model, _ = _with_embedding(folder, target, tie_word_embeddings=True, attn_implementation="sdpa")
    model.to(device="cpu", dtype=torch.bfloat16).save_pretrained(out)


def _with_embedding(
    folder: Path, target: LanguageModel, **changes: object
) -> tuple[transformers.LlamaForCausalLM, torch.Tensor]:
    """The draft as a causal LM with the target's embedding, and the ids that it scores."""
    settings = read_draft(folder, "plain_draft", target)
    config = transformers.LlamaConfig(**{**settings["llama"], **changes})
    draft = PlainDraft(config, settings["num_scored"])
    fill_draft(draft, folder)
    draft.to(device=target.device, dtype=target.dtype)
    host_memory.move(draft)
    draft.body.rotary_emb = type(draft.body.rotary_emb)(config).to(target.device)  # its frequencies stay float32
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.model = draft.body
    model.model.embed_tokens = nn.Embedding.from_pretrained(target.model.get_input_embeddings().weight)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model, draft.scored_ids
