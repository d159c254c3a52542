"""The shipped prompts, and how they become token ids of natural or exact length."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec_lib.study.prompts import FOLDER, encode_prompts, load_prompts, prompt_set_hash, random_prompts

TEMPLATE = (
    "{% for message in messages %}<user> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
SPECIAL = ["<unk>", "<user>", "<end>", "<answer>"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the shipped prompts, and a chat template around the text."""
    texts = " ".join(prompt.text + " " + prompt.passage for prompt in load_prompts("mixed"))
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *sorted(set(texts.split()))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    made.chat_template = TEMPLATE
    return made


def test_the_shipped_set() -> None:
    prompts = load_prompts("mixed")
    assert len(prompts) == len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 24
    assert set(Counter(prompt.category for prompt in prompts).values()) == {4}
    assert [prompt.category for prompt in prompts[:4]] == ["chat", "summary", "code-edit", "question"]
    assert len({prompt.passage[:40] for prompt in prompts}) == 24


def test_passages_are_not_among_the_prompts() -> None:
    assert not any(prompt.category == "passage" for prompt in load_prompts("mixed"))


def test_unknown_set_names_the_known() -> None:
    with pytest.raises(ValueError, match="no prompt set 'mixd': choose one of mixed"):
        load_prompts("mixd")


def test_hash_is_of_the_file() -> None:
    assert prompt_set_hash("mixed") == hashlib.sha256((FOLDER / "mixed.jsonl").read_bytes()).hexdigest()


def test_natural_prompts_go_through_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = load_prompts("mixed")
    encoded = encode_prompts(prompts, tokenizer, 0)
    assert all(ids.dtype == torch.int64 and ids.dim() == 1 for ids in encoded)
    assert len({len(ids) for ids in encoded}) > 12  # ragged
    words = tokenizer.convert_ids_to_tokens(encoded[0].tolist())
    assert words == ["<user>", *prompts[0].text.split(), "<end>", "<answer>"]


@pytest.mark.parametrize("length", [7, 64, 384, 1024])
def test_exact_length_keeps_the_template_whole(tokenizer: PreTrainedTokenizerFast, length: int) -> None:
    encoded = encode_prompts(load_prompts("mixed"), tokenizer, length)
    assert {len(ids) for ids in encoded} == {length}
    words = tokenizer.convert_ids_to_tokens(encoded[3].tolist())
    assert (words[0], words[-2:]) == ("<user>", ["<end>", "<answer>"])
    assert len({tuple(ids.tolist()) for ids in encoded}) > (1 if length == 7 else 23)


@pytest.mark.parametrize(
    ("length", "remedy"), [(-1, "give 0"), (6, "give at least 7"), (100_000, r"give at most \d+, or add passages")]
)
def test_impossible_length_names_the_remedy(tokenizer: PreTrainedTokenizerFast, length: int, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"prompt_tokens is {length}: {remedy}"):
        encode_prompts(load_prompts("mixed"), tokenizer, length)


def test_a_tokenizer_without_a_template_reads_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    prompts = load_prompts("mixed")[:1]
    assert len(encode_prompts(prompts, tokenizer, 0)[0]) == len(prompts[0].text.split())
    assert len(encode_prompts(prompts, tokenizer, 20)[0]) == 20


def test_random_prompts_are_ragged_and_reproducible() -> None:
    first, second = (random_prompts(16, 50, 0, torch.Generator().manual_seed(3)) for _ in range(2))
    assert {len(ids) for ids in first} == set(range(3, 10))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert {int(token) for ids in first for token in ids} == set(range(16))
    assert {len(ids) for ids in random_prompts(16, 4, 12, torch.Generator().manual_seed(3))} == {12}
