"""Tiny random checkpoints on disk, as save_pretrained writes them."""

import json

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(40)]


def write_checkpoint(folder, words=WORDS, layers=2, **changes):
    """A tiny random Llama with a tokenizer of its own; returns the folder as text."""
    torch.manual_seed(layers)
    geometry = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(**geometry, num_hidden_layers=layers, max_position_embeddings=128, **changes)
    LlamaForCausalLM(config).save_pretrained(folder)
    words_to_ids = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words_to_ids, unk_token="w0", eos_token="w1").save_pretrained(folder)
    return str(folder)


def write_grouped_checkpoint(folder):
    """A tiny Llama in bfloat16 whose query heads share a key head, with a byte-level vocabulary; returns the folder."""
    write_checkpoint(folder, num_key_value_heads=1, head_dim=8)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.BPE(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"], []))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(folder)
    return folder
