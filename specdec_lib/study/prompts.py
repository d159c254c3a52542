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
    starts = [number % max(len(paragraphs), 1) for number in range(len(prompts))]
    passages = ["\n\n".join(paragraphs[start:] + paragraphs[:start]) for start in starts]
    return [Prompt(**entry, passage=passage) for entry, passage in zip(prompts, passages, strict=True)]


def prompt_set_hash(name: str) -> str:
    """SHA-256 of the prompt set, in hexadecimal: part of what determines a cell."""
    return hashlib.sha256(_path(name).read_bytes()).hexdigest()


def _path(name: str) -> Path:
    path = FOLDER / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.jsonl")))
        raise ValueError(f"no prompt set {name!r}: choose one of {known}")
    return path


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
    template, opening = tokenizer.chat_template, {"add_special_tokens": tokenizer.chat_template is None}

    def rendered(text: str) -> str:  # what the model reads when a user says it, up to where the answer begins
        messages = [{"role": "user", "content": text}]
        if template is None:
            return text
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    if prompt_tokens == 0:
        return [torch.tensor(tokenizer(rendered(prompt.text), **opening)["input_ids"]) for prompt in prompts]
    before, after = rendered(TASK + PLACE).split(PLACE)
    head = list(tokenizer(before, **opening)["input_ids"])
    tail = list(tokenizer(after, add_special_tokens=False)["input_ids"])
    passages = [tokenizer(prompt.passage, add_special_tokens=False)["input_ids"] for prompt in prompts]
    around = len(head) + len(tail)
    if prompt_tokens <= around:
        reason = f"give at least {around + 1}, which the chat template and task need"
        raise ValueError(f"prompt_tokens is {prompt_tokens}: {reason}")
    if prompt_tokens > (most := around + min(map(len, passages))):
        raise ValueError(f"prompt_tokens is {prompt_tokens}: give at most {most}, or add passages to the prompt set")
    return [torch.tensor([*head, *passage[: prompt_tokens - around], *tail]) for passage in passages]


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
        prompt_tokens: the length of each; 0 for ragged lengths from 3 to 9.
    """
    shortest, longest = (prompt_tokens, prompt_tokens) if prompt_tokens else RAGGED
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]
