"""Small tokenizers of the kinds that people use, trained on a few sentences in a moment."""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "In the beginning the weather was nice; then it rained for forty days.",
    "Schöne Grüße aus Köln! Les élèves ont déjà mangé.",
] * 4


def wrapped(tokenizer, **roles):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


@cache
def byte_level(size=400, added=("<|end|>",), texts=tuple(TEXTS)):
    """As of GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in added])
    return wrapped(tokenizer, eos_token=added[0])


@cache
def sentencepiece(size=300, prepend=True):
    """As of Llama 2 (a space before every text) or Gemma (none): pieces with ▁, and a token for each byte."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    trained = json.loads(pieces.to_str())["model"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: token_id for token_id, name in enumerate([*special, *trained["vocab"]])}
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prepend else spaces
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prepend else parts)
    tokenizer.add_special_tokens(special[:3])
    return wrapped(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def wordpiece(size=300):
    """As of BERT, uncased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    return wrapped(tokenizer, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]")
