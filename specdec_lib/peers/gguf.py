"""A Llama checkpoint as a GGUF file with the same weights, for engines that do not read safetensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from specdec_lib.models.weights import sha256

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FILE_TYPES = {
    torch.float16: gguf.LlamaFileType.MOSTLY_F16,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
    torch.float32: gguf.LlamaFileType.ALL_F32,
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(checkpoint: Path, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the checkpoint in a folder (Llama, byte-level BPE) to `path`: norms as float32, matrices in `dtype`.

    From bfloat16 to float16 that is exact, but for weights below 6e-5, which are off by at most 3e-8.

    Args:
        dtype: float16, bfloat16 or float32.

    Raises:
        ValueError: it is no plain Llama checkpoint, or a weight is too large for float16.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if config["model_type"] != "llama" or rope.get("rope_type") != "default":
        raise ValueError(f"{checkpoint} is no Llama checkpoint with plain rotary embeddings: others are not converted")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(_FILE_TYPES[dtype])
    _add_tokenizer(writer, checkpoint, config)
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, weight in load_file(file).items():
            rotated = heads if ".q_proj." in name else kv_heads if ".k_proj." in name else None
            _add(writer, gguf_name(name), interleaved(weight, rotated) if rotated else weight, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def checkpoint_key(checkpoint: Path, *told: str) -> str:
    """A hash of a checkpoint's files, and of what else decides how they are converted.

    Raises:
        ValueError: it is no folder.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is no folder: only checkpoints on this machine are converted")
    files = sorted([*checkpoint.glob("*.safetensors"), checkpoint / "config.json", checkpoint / "tokenizer.json"])
    return hashlib.sha256("\n".join([*told, *(sha256(path) for path in files)]).encode()).hexdigest()[:16]


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` as `blk.3.attn_q.weight`."""
    stem = name.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[inner]}.weight"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:  # [heads * D, K]
    """Rows of each head reordered from halves to pairs: GGUF rotates neighbours, Hugging Face rotates halves."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _add(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, dtype: torch.dtype) -> None:
    if weight.ndim == 1:
        writer.add_tensor(name, weight.float().numpy())
        return
    matrix = weight.to(dtype).contiguous()
    if not matrix.isfinite().all():
        raise ValueError(f"{name} has weights beyond the range of {str(dtype).removeprefix('torch.')}")
    if dtype == torch.bfloat16:  # which numpy does not know
        writer.add_tensor(name, matrix.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, matrix.numpy())


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, Any]) -> None:
    """The vocabulary, which engines insist on, though they are given and asked for token ids only."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    special = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"] | special
    kinds = np.full(len(vocabulary), int(gguf.TokenType.NORMAL))
    kinds[sorted(special.values())] = int(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types(kinds.tolist())
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
