"""A Llama checkpoint as a GGUF file with the same weights, for engines that do not read safetensors."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from specdec_lib.models.loading.weights import sha256

FORMAT = "GGUF, 2"  # raise it when what is written changes
_FILE_TYPES = {
    torch.float16: gguf.LlamaFileType.MOSTLY_F16,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
    torch.float32: gguf.LlamaFileType.ALL_F32,
}


def gguf_of(checkpoint: Path, models: Path, dtype: torch.dtype) -> Path:
    """The checkpoint as a GGUF file below `models`, written once: its folder is named by a hash of the checkpoint.

    ValueError if the checkpoint is no folder, or of a kind that is not converted.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is no folder: only checkpoints on this machine are converted")
    files = sorted([*checkpoint.glob("*.safetensors"), checkpoint / "config.json", checkpoint / "tokenizer.json"])
    decisive = "\n".join([FORMAT, str(dtype), *(sha256(path) for path in files)])
    path = models / hashlib.sha256(decisive.encode()).hexdigest()[:16] / "model.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models, prefix="making-") as work:
            write_gguf(checkpoint, Path(work) / path.name, dtype)
            (Path(work) / path.name).replace(path)
    return path


def write_gguf(checkpoint: Path, path: Path, dtype: torch.dtype) -> None:
    """Write the checkpoint in a folder (Llama, byte-level BPE) to `path`: norms as float32, matrices in `dtype`.

    From bfloat16 to float16 this is exact, except that weights below 6e-5 are off by at most 3e-8. ValueError if it is
    no plain Llama checkpoint, or a weight is too large for float16.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if config["model_type"] != "llama" or rope.get("rope_type") != "default":
        raise ValueError(f"{checkpoint} is no Llama checkpoint with plain rotary embeddings: others are not converted")
    heads, kv_heads, layers = (
        config[f"num_{what}"] for what in ("attention_heads", "key_value_heads", "hidden_layers")
    )
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(_FILE_TYPES[dtype])
    _add_tokenizer(writer, checkpoint, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, weight in load_file(file).items():
            rotated = heads if ".q_proj." in name else kv_heads if ".k_proj." in name else None
            weight = interleaved(weight, rotated) if rotated else weight
            _add(writer, names.get_name(name, try_suffixes=(".weight",)), weight, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:  # [heads * D, K]
    """Reorder the rows of each head from halves to pairs: GGUF rotates neighbours, Hugging Face rotates halves."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _add(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, dtype: torch.dtype) -> None:
    matrix = weight.to(torch.float32 if weight.ndim == 1 else dtype).contiguous()
    if not matrix.isfinite().all():
        raise ValueError(f"{name} has weights beyond the range of {str(dtype).removeprefix('torch.')}")
    if matrix.dtype == torch.bfloat16:  # which numpy does not know
        writer.add_tensor(name, matrix.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, matrix.numpy())


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, Any]) -> None:
    """The vocabulary. Engines refuse a file without it, although they get and return token ids only."""
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
