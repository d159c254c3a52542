"""Read a file of prompts: JSON Lines in our format or in Spec-Bench's. What is wrong is named by file and line."""

from __future__ import annotations

import codecs
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = '{"id": "1", "category": "chat", "text": "Hello"}'
SPEC_BENCH = '{"question_id": 1, "category": "chat", "turns": ["Hello"]}'
ONE_A_LINE = "write one JSON object a line"
KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}  # else a number


@dataclass(frozen=True)
class Prompt:
    """One prompt: `text` as a user would type it, `passage` to cut a prompt of an exact length from."""

    id: str
    category: str
    text: str
    passage: str = ""


def read_prompt_file(path: Path, turns: str) -> list[Prompt]:
    """The prompts and paragraphs of a file in their order, still without passages.

    Lines end at line feeds only: other separators, such as U+2028, may stand in a text. Blank lines are skipped.

    Args:
        turns: "first" or "all"; see `StudyParams`.

    Raises:
        ValueError: the file cannot be read, or a line is not UTF-8, no JSON object, lacks a key, has a value of another
            type or no text, or an id of an earlier line; names file, line and remedy.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"prompt_set is {path}: {error.strerror}: give the path of a JSONL file of prompts") from None
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}  # of each id
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            for prompt in _prompts_of(_parse(line), turns):
                if prompt.id in lines:
                    known = f"that of line {lines[prompt.id]} too" if lines[prompt.id] < number else "there twice"
                    raise ValueError(f"id {prompt.id!r} is {known}: give each prompt an id of its own")
                lines[prompt.id] = number
                prompts.append(prompt)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return prompts


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a line."""
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8: save the file in the encoding UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, column {error.colno}): {ONE_A_LINE}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise ValueError(f"not readable as JSON ({error}): {ONE_A_LINE}") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{_kind(entry)}, not an object: {ONE_A_LINE}, such as {OURS}")
    return entry


def _prompts_of(entry: dict[str, Any], turns: str) -> list[Prompt]:
    """The prompt of a line in our format, or those of a line in Spec-Bench's; further keys are not read."""
    spec_bench = "turns" in entry or "question_id" in entry
    keys = ("question_id", "category", "turns") if spec_bench else ("id", "category", "text")
    for key in keys:
        if key not in entry:
            near = difflib.get_close_matches(key, entry.keys() - {*keys}, n=1)
            hint = f", but {near[0]}: did you mean {key}?" if near else ""
            raise ValueError(f"no key {key}{hint}: write a line such as {SPEC_BENCH if spec_bench else OURS}")
    identifier, category = _id(entry, keys[0]), _text(entry["category"], "category")
    if not spec_bench:
        return [Prompt(identifier, category, _text(entry["text"], "text"))]
    if not isinstance(entry["turns"], list) or not entry["turns"]:
        problem = "is empty" if entry["turns"] == [] else f"is {_kind(entry['turns'])}"
        raise ValueError(f"turns {problem}: write a list of texts, such as {SPEC_BENCH}")
    texts = [_text(text, f"turn {number}") for number, text in enumerate(entry["turns"], start=1)]
    if turns == "first":
        return [Prompt(identifier, category, texts[0])]
    ends = range(1, len(texts) + 1)
    return [Prompt(f"{identifier}-{end}", category, "\n\n".join(texts[:end])) for end in ends]


def _id(entry: dict[str, Any], key: str) -> str:
    """An id, which may be a whole number."""
    value = entry[key]
    name = str(value) if type(value) is int else _text(value, key, "a text in quotes or a whole number")
    if any(map(str.isspace, name)):
        raise ValueError(f"{key} is {name!r}: write it without spaces")
    return name


def _text(value: Any, name: str, wanted: str = "a text in quotes") -> str:
    """A text that is one, is not empty, and can be encoded."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_kind(value)}: write {wanted}")
    if not value.strip():
        raise ValueError(f"{name} is empty: write {wanted}, or leave the line out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name} holds half of a surrogate pair, which is no character: remove its \\u escape"
        ) from None
    return value


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "a number")
