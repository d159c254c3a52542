"""What published heads share: token rows of their own or of the target, and decoder layers as transformers has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5

from specdec_lib.models import host_memory
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.draft_head import DraftHead, HeadSizes
from specdec_lib.models.published.config import PublishedConfig
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import attention_geometry


class Parts(NamedTuple):
    """The classes of which the layers of a model type are made."""

    layer: Any
    norm: Any
    rotary: Any
    rotate: Any = llama.apply_rotary_pos_emb


PARTS = {
    "llama": Parts(llama.LlamaDecoderLayer, llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding),
    "qwen3": Parts(qwen3.Qwen3DecoderLayer, qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding),
    "qwen3_5_text": Parts(qwen3_5.Qwen3_5DecoderLayer, qwen3_5.Qwen3_5RMSNorm, qwen3_5.Qwen3_5TextRotaryEmbedding),
}
TOKEN_ROWS = ("embed_tokens.weight", "lm_head.weight")  # the target's where a head has none


class PublishedHead(DraftHead):
    """A head whose modules have the names of its checkpoint, so that its tensors are theirs."""

    def __init__(self, config: PublishedConfig):
        layers = config.layers
        sizes = HeadSizes(layers.num_hidden_layers, *attention_geometry(layers))
        super().__init__(config.where, sizes, config.target_vocab_size, layers.hidden_size, config.feature_layers)
        self.config, self.parts = config, PARTS[layers.model_type]
        self.layers = nn.ModuleList(self.parts.layer(layers, index) for index in range(layers.num_hidden_layers))

    def new_norm(self, width: int) -> nn.Module:
        norm: nn.Module = self.parts.norm(width, eps=self.config.layers.rms_norm_eps)
        return norm

    def fill(self, tensors: Mapping[str, torch.Tensor], scored_ids: torch.Tensor, target: LanguageModel) -> None:
        """Take the tensors of the checkpoint, by their names, and the target's rows where it has none."""
        device, dtype = target.device, target.dtype
        own = {name: tensors[name].to(device, dtype) for name in tensors if name in TOKEN_ROWS}
        layers = {name: tensors[name].to(device, dtype) for name in self.state_dict()}
        self.load_state_dict(layers, assign=True)
        self.eval().requires_grad_(False)
        host_memory.move(self)
        self.rotary = self.parts.rotary(self.config.layers).to(device)  # its frequencies stay float32
        self.context_length = target.context_length
        embeddings, rows = (own.get(name) for name in TOKEN_ROWS)
        ids = scored_ids.to(device)
        buffers = {
            "scored_ids": ids,
            "embeddings": target.model.get_input_embeddings().weight.detach() if embeddings is None else embeddings,
            "output_rows": target.head.weight.detach()[ids] if rows is None else rows,
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def attending(self, x: torch.Tensor, cache: RaggedStaticCache) -> dict[str, Any]:
        """What a layer needs to attend from `x` `[B, m, H]` at the next positions of each row."""
        positions = cache.place(x.shape[1])
        return {
            "attention_mask": cache.attention_mask(self.dtype),
            "position_embeddings": self.rotary(x, position_ids=positions),  # cosines and sines [B, m, D]
            "past_key_values": cache,
        }
