"""Plain drafts: small Llama models that speak the target's tokens and share its embedding.

Two shapes: the target's own width with a few of its layers, or a narrower model whose embedding is the target's behind
a learned projection. Only the layers (and the projection) are shipped. Inside this library just the most frequent
tokens are scored; `export_plain_draft` writes the same model as an ordinary Hugging Face checkpoint that scores all.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn.functional import linear

from specdec_lib.models import host_memory
from specdec_lib.models.attention import our_attention
from specdec_lib.models.draft_head import load_weights, read_config, save_draft
from specdec_lib.models.engines import kernels as fused
from specdec_lib.models.runner import LanguageModel


class ScoredRows(nn.Module):
    """An output layer that scores some tokens of the vocabulary and gives -inf to the others."""

    scored_ids: torch.Tensor

    def __init__(self, embeddings: torch.Tensor, scored_ids: torch.Tensor):  # [V, h], [scored]
        super().__init__()
        self.vocab_size = len(embeddings)
        self.weight = nn.Parameter(embeddings[scored_ids], requires_grad=False)
        self.register_buffer("scored_ids", scored_ids)
        self.kernels = False  # multiply with the CPU kernels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # [..., h] -> [..., V]
        scores = fused.linear(hidden, self.weight) if self.kernels else linear(hidden, self.weight)
        full = scores.new_full((*hidden.shape[:-1], self.vocab_size), float("-inf"))
        return full.index_copy_(-1, self.scored_ids, scores)


class PlainDraft(nn.Module):
    """What is shipped of a plain draft: layers, last norm, a narrower model's projection, and the scored ids."""

    scored_ids: torch.Tensor

    def __init__(self, config: transformers.LlamaConfig, target_width: int, num_scored: int):
        super().__init__()
        self.config, self.target_width = config, target_width
        self.body = transformers.LlamaModel(config)
        self.body.embed_tokens = nn.Identity()  # it belongs to the target
        narrow = config.hidden_size != target_width
        self.projection = nn.Linear(target_width, config.hidden_size, bias=False) if narrow else nn.Identity()
        self.register_buffer("scored_ids", torch.arange(num_scored))

    @property
    def num_parameters(self) -> int:
        """Weights of its own; what is shared with the target does not count."""
        return sum(p.numel() for p in self.parameters())

    def save(self, folder: Path) -> None:
        """Write weights (bfloat16) and config; the target's embedding stays behind."""
        sizes = {"target_width": self.target_width, "num_scored": len(self.scored_ids)}
        save_draft(self, folder, "plain_draft", {"llama": self.config.to_diff_dict(), **sizes})


def load_plain_draft(folder: Path, target: LanguageModel) -> LanguageModel:
    """The draft in `folder` joined to `target`, scoring the frequent tokens only.

    Raises:
        ValueError: a missing or truncated file, or a draft made for another target.
    """
    draft, embeddings = _join(folder, target)
    model = _causal_model(draft, embeddings, tied=False)
    model.lm_head = rows = ScoredRows(embeddings, draft.scored_ids.to(target.device))
    host_memory.move(rows)
    joined = LanguageModel(model, name=Path(folder).name, compiled=target.compiled)
    rows.kernels = joined.fused is not None
    return joined


def export_plain_draft(folder: Path, out: Path, target: LanguageModel) -> None:
    """Write the draft in `folder` as an ordinary checkpoint with the full tied embedding."""
    draft, embeddings = _join(folder, target)
    model = _causal_model(draft, embeddings, tied=True)
    model.to(device="cpu", dtype=torch.bfloat16).save_pretrained(out)


def _join(folder: Path, target: LanguageModel) -> tuple[PlainDraft, torch.Tensor]:
    settings = read_config(folder, "plain_draft")
    config = transformers.LlamaConfig(**settings["llama"])
    if (settings["target_width"], config.vocab_size) != (target.hidden_size, target.vocab_size):
        raise ValueError(
            f"{folder}: made for a target of width {settings['target_width']} and {config.vocab_size} tokens, but "
            f"{target.name} has {target.hidden_size} and {target.vocab_size}; use the draft with its own target"
        )
    draft = PlainDraft(config, settings["target_width"], settings["num_scored"])
    load_weights(draft, folder)
    draft.to(device=target.device, dtype=target.dtype)
    host_memory.move(draft)
    draft.body.rotary_emb = type(draft.body.rotary_emb)(config).to(target.device)  # its frequencies stay float32
    with torch.inference_mode():
        return draft, draft.projection(target.model.get_input_embeddings().weight)  # [V, h]


def _causal_model(draft: PlainDraft, embeddings: torch.Tensor, tied: bool) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(**{**draft.config.to_diff_dict(), "tie_word_embeddings": tied})
    config._attn_implementation = "sdpa" if tied else our_attention()
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    draft.body.config = config
    for layer in draft.body.layers:
        layer.self_attn.config = config
    model.model = draft.body
    shared = embeddings.clone() if embeddings.is_inference() else embeddings  # the target's own, unless projected
    model.model.embed_tokens = nn.Embedding.from_pretrained(shared)
    model.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device=embeddings.device)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model
