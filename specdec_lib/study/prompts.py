"""The prompts of a study: a shipped set through the chat template, cut to an exact length, or random ids for toys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from specdec_lib.config import StudyParams
from specdec_lib.study.cells import Setting, prompt_groups, settings

FOLDER = Path(__file__).resolve().parent.parent / "prompts"
PASSAGE = "passage"  # the category of the paragraphs that prompts of an exact length are cut from
TASK = "Continue this text.\n\n"
PLACE = "<<passage>>"  # where the passage goes in the rendered chat template
RAGGED = (3, 9)  # shortest and longest random prompt when no length is asked for, in tokens


@dataclass(frozen=True)
class Prompt:
    """One prompt: `text` as a user would type it, `passage` to cut a prompt of an exact length from."""

    id: str
    category: str
    text: str
    passage: str = ""


Encoded = tuple[Prompt, torch.Tensor]  # with its token ids, int64


def load_prompts(name: str) -> list[Prompt]:
    """The prompts of `prompts/<name>.jsonl` in their order; each passage starts with another paragraph.

    Raises:
        ValueError: no such prompt set; names those there are.
    """
    entries = [json.loads(line) for line in _path(name).read_text(encoding="utf-8").splitlines()]
    paragraphs = [entry["text"] for entry in entries if entry["category"] == PASSAGE]
    prompts = [entry for entry in entries if entry["category"] != PASSAGE]
    return [Prompt(**entry, passage=_starting_at(paragraphs, i)) for i, entry in enumerate(prompts)]


def prompt_set_hash(name: str) -> str:
    """SHA-256 of the prompt set, in hexadecimal: part of what determines a cell.

    Raises:
        ValueError: no such prompt set; names those there are.
    """
    return hashlib.sha256(_path(name).read_bytes()).hexdigest()


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: transformers.PreTrainedTokenizerBase, prompt_tokens: int
) -> list[torch.Tensor]:
    """Token ids of the prompts, one 1-D int64 tensor each.

    Args:
        prompts: as `load_prompts` returns them.
        tokenizer: of the target; its chat template is applied, or none if it has none.
        prompt_tokens: 0 for the texts as they are, of ragged lengths; else each prompt asks to continue its passage,
            which is cut so that the whole has exactly this number of tokens.

    Raises:
        ValueError: `prompt_tokens` is negative, too small for the template or too large for the passages.
    """
    if prompt_tokens < 0:
        raise ValueError(f"prompt_tokens is {prompt_tokens}: give 0 for the prompts as they are or a positive length")
    if prompt_tokens == 0:
        return [_tensor(_template_ids(tokenizer, _rendered(tokenizer, prompt.text))) for prompt in prompts]
    return [_tensor(_cut(prompt, tokenizer, prompt_tokens)) for prompt in prompts]


def study_prompts(
    params: StudyParams, setting: Setting, tokenizer: transformers.PreTrainedTokenizerBase | None, vocab_size: int
) -> list[Encoded]:
    """The prompts that a study decodes in a setting, by number; the numbers of `prompt_groups` count round the set.

    Args:
        tokenizer: of the target; with None the prompts are random.
        vocab_size: which random ones are drawn from.

    Raises:
        ValueError: no such prompt set, or prompts that cannot be of the setting's length.
    """
    count = 1 + max(max(group) for group in prompt_groups(params, setting))
    tokens = setting.prompt_tokens or 0
    if tokenizer is None:
        ids = random_prompts(vocab_size, count, tokens, torch.Generator().manual_seed(params.seed))
        prompts = [Prompt(id=f"random-{number}", category="random", text="") for number in range(count)]
    else:
        known = load_prompts(params.prompt_set)
        prompts = [known[number % len(known)] for number in range(count)]
        ids = encode_prompts(prompts, tokenizer, tokens)
    return list(zip(prompts, ids, strict=True))


def check_prompts(params: StudyParams, tokenizer: transformers.PreTrainedTokenizerBase, context_length: int) -> None:
    """Refuse a study whose prompts cannot be made so long, or leave no room for its output; reads no weights.

    Args:
        context_length: of the target or the draft, whichever is shorter, in tokens.

    Raises:
        ValueError: naming the length and what would fit.
    """
    for setting in settings(params):
        longest = max(len(ids) for _, ids in study_prompts(params, setting, tokenizer, 0))
        if longest + setting.max_new_tokens > context_length:
            raise ValueError(
                f"prompts of {longest} tokens and {setting.max_new_tokens} new ones exceed the context of target or "
                f"draft, {context_length} tokens: lower max_new_tokens or choose shorter prompts"
            )


def random_prompts(vocab_size: int, count: int, prompt_tokens: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Random token ids for models without a tokenizer: `count` 1-D int64 tensors.

    Args:
        vocab_size: ids are drawn from 0..vocab_size - 1.
        count: how many prompts.
        prompt_tokens: the length of each; 0 for ragged lengths from 3 to 9.
        generator: makes the result reproducible.
    """
    shortest, longest = (prompt_tokens, prompt_tokens) if prompt_tokens else RAGGED
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]


def _path(name: str) -> Path:
    path = FOLDER / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.jsonl")))
        raise ValueError(f"no prompt set {name!r}: choose one of {known}")
    return path


def _starting_at(paragraphs: list[str], start: int) -> str:
    start %= max(len(paragraphs), 1)
    return "\n\n".join(paragraphs[start:] + paragraphs[:start])


def _rendered(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> str:
    """What the model reads when a user says `text`, up to where the answer begins."""
    if tokenizer.chat_template is None:
        return text
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _cut(prompt: Prompt, tokenizer: transformers.PreTrainedTokenizerBase, prompt_tokens: int) -> list[int]:
    before, after = _rendered(tokenizer, TASK + PLACE).split(PLACE)
    head, tail = _template_ids(tokenizer, before), _ids(tokenizer, after)
    room = prompt_tokens - len(head) - len(tail)
    if room < 1:
        least = len(head) + len(tail) + 1
        raise ValueError(
            f"prompt_tokens is {prompt_tokens}: give at least {least}, which the chat template and task need"
        )
    passage = _ids(tokenizer, prompt.passage)
    if len(passage) < room:
        most = len(head) + len(tail) + len(passage)
        raise ValueError(f"prompt_tokens is {prompt_tokens}: give at most {most}, or add passages to the prompt set")
    return head + passage[:room] + tail


def _template_ids(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that opens a prompt; a chat template holds its special tokens already."""
    return _ids(tokenizer, text, add_special_tokens=tokenizer.chat_template is None)


def _ids(tokenizer: transformers.PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


def _tensor(ids: list[int]) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64)
