"""The tiny random models that every engine is tested on, on disk: their law is known exactly.

A target and a draft of Llama's shape that disagree strongly, so that a wrong rule shows. Five tokens of text, which are
single letters, and three special ones, whose chance is below 1e-20: an engine that stops at a stop token never meets
one. Weights are numbers of bfloat16, so that both precisions have the same model. `other draft` spells the same texts
with other tokens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specdec_lib.config import cache_folder
from specdec_lib.models.attention import our_attention
from specdec_lib.models.loading.gguf_writing import write_gguf
from specdec_lib.models.runner import LanguageModel

FORMAT = 2  # raise it when the models change: results of others are not comparable
LETTERS = "abcde"  # the tokens of text, by id
SPECIAL = ("<s></s>", "<s>", "</s>")  # ids 5, 6, 7; the first stands for the unknown
VOCABULARY = len(LETTERS) + len(SPECIAL)
OTHER_PIECES = ("d", "b", "ab", "e", "a", "cd", "c")  # of the other draft, by id; two are merges
PROMPTS = ((0, 1, 2, 0, 1), (3, 2, 3, 4, 3, 2, 3))  # lookup finds drafts
NEVER = -200.0  # the weight of the constant for special tokens
SPREAD = 1.6  # standard deviation of the logits of text tokens
SEEDS = {"target": 2, "draft": 3, "other draft": 4}  # target and draft: total variation 0.55 on average
INIT = 0.2
GREEDY_PROMPTS, GREEDY_LENGTH = 24, 24


def tiny_models() -> dict[str, dict[str, str]]:
    """The paths of `target`, `draft` and `other draft` by what an engine reads; they are written once, to the cache.

    Returns:
        `checkpoint`: folders; `gguf`, `gguf-float16`: files of the same weights, for target and draft.
    """
    folder = cache_folder() / "league" / f"models-{FORMAT}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as work:
            (Path(work) / "models").mkdir()
            write_models(Path(work) / "models")
            (Path(work) / "models").rename(folder)
    names = ("target", "draft")
    return {
        "checkpoint": {name: str(folder / name.replace(" ", "-")) for name in (*names, "other draft")},
        "gguf": {name: str(folder / f"{name}.gguf") for name in names},
        "gguf-float16": {name: str(folder / f"{name}-float16.gguf") for name in names},
    }


def write_models(folder: Path) -> None:
    """Write all models into `folder`."""
    for name, seed in SEEDS.items():
        other, path = name == "other draft", folder / name.replace(" ", "-")
        pieces = OTHER_PIECES if other else tuple(LETTERS)
        tiny_llama(seed, len(pieces)).save_pretrained(path)
        GenerationConfig(bos_token_id=len(pieces) + 1).save_pretrained(path)  # and no sampling of its own
        tokenizer_of(pieces).save_pretrained(path)
        if not other:
            write_gguf(path, folder / f"{name}.gguf", torch.float32)
            write_gguf(path, folder / f"{name}-float16.gguf", torch.float16)


def tiny_llama(seed: int, letters: int = len(LETTERS)) -> LlamaForCausalLM:
    """A random Llama of two layers whose special tokens, the last three, are never drawn."""
    vocabulary = letters + len(SPECIAL)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=INIT,
        bos_token_id=letters + 1,
        eos_token_id=letters + 2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
        embeddings.mul_(2.0 / INIT)
        embeddings[:, 0] = 2.0  # a constant that no layer changes, by which the head tells special tokens apart
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        head.mul_(SPREAD / (INIT * head.shape[1] ** 0.5))
        head[:, 0] = 0
        head[letters:] = 0
        head[letters:, 0] = NEVER
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    return model


def tokenizer_of(pieces: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these pieces; those of two letters are merges.

    Readers of GGUF files refuse a vocabulary without merges; so the first special token is one of the two others.
    """
    unknown, begin, end = SPECIAL
    merges = [(begin, end), *((piece[0], piece[1]) for piece in pieces if len(piece) == 2)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate((*pieces, *SPECIAL))}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, bos_token=begin, eos_token=end)


def load_tiny(name: str, dtype: torch.dtype = torch.float32, compiled: bool = False) -> LanguageModel:
    """A tiny model for our own runner; `compiled` takes the kernels where they compute its dtype."""
    path = tiny_models()["checkpoint"][name]
    model = LlamaForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=our_attention(), trust_remote_code=False
    )
    return LanguageModel(model.eval(), f"tiny {name}", compiled=compiled)


def greedy_prompts() -> list[list[int]]:
    """Random prompts for greedy texts, of 2 to 9 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 10, (GREEDY_PROMPTS,), generator=generator).tolist()
    return [torch.randint(len(LETTERS), (length,), generator=generator).tolist() for length in lengths]
