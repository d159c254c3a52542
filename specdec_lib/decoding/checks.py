"""What a decoding call refuses, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch

from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.loading.config_checks import how_to_extend
from specdec_lib.models.runner import LanguageModel

Prompts = Sequence[torch.Tensor | Sequence[int]]


def checked_prompts(
    target: LanguageModel, prompts: Prompts, max_new_tokens: int, stop_token_ids: Sequence[int]
) -> list[torch.Tensor]:
    """The prompts as 1-D int64 tensors.

    Raises:
        ValueError: no prompts, an empty one, a token id outside the vocabulary, more tokens than the context holds, or
            what is no list of them.
    """
    if not is_whole(max_new_tokens) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}: ask for at least 1")
    if not isinstance(stop_token_ids, Sequence) or not all(isinstance(token, Integral) for token in stop_token_ids):
        raise ValueError(f"stop_token_ids is {stop_token_ids!r}: give a tuple of token ids, () for none")
    if not isinstance(prompts, list | tuple):
        raise ValueError(f"prompts is a {type(prompts).__name__}: give a list with the token ids of each row")
    if not prompts:
        raise ValueError("there are no prompts: give a list with the token ids of at least one row")
    return [_checked_prompt(target, row, prompt, max_new_tokens) for row, prompt in enumerate(prompts)]


def is_whole(value: object) -> bool:
    """Whether this is a whole number, of whatever library."""
    return isinstance(value, Integral)


def _checked_prompt(
    target: LanguageModel, row: int, prompt: torch.Tensor | Sequence[int], max_new_tokens: int
) -> torch.Tensor:
    remedy = "give a 1-D int64 tensor or a list of token ids"
    if not isinstance(prompt, torch.Tensor):
        if not isinstance(prompt, list | tuple) or not all(isinstance(token, Integral) for token in prompt):
            raise ValueError(f"prompt {row} is {type(prompt).__name__} {str(prompt)[:40]!r}: {remedy}")
        outside = not all(0 <= token < target.vocab_size for token in prompt)
        prompt = torch.tensor([-1] if outside else prompt, dtype=torch.int64)
    if prompt.dim() != 1 or prompt.dtype != torch.int64:
        raise ValueError(f"prompt {row} is {prompt.dtype} {list(prompt.shape)}: {remedy}")
    if len(prompt) == 0:
        raise ValueError(f"prompt {row} is empty: give it at least one token, such as the start-of-text token")
    if int(prompt.min()) < 0 or int(prompt.max()) >= target.vocab_size:
        raise ValueError(f"prompt {row} has a token id outside 0..{target.vocab_size - 1}: use the target's tokenizer")
    check_context(target, len(prompt), max_new_tokens)
    return prompt


def check_context(model: LanguageModel | DraftHead, prompt_tokens: int, max_new_tokens: int) -> None:
    """Refuse more tokens than `model` has positions for."""
    if prompt_tokens + max_new_tokens > model.context_length:
        config = getattr(getattr(model, "model", None), "config", None)
        raise ValueError(
            f"{prompt_tokens} prompt tokens and {max_new_tokens} new ones exceed the context of {model.name}, "
            f"{model.context_length} tokens{getattr(model, 'why_shorter', '')}: shorten the prompt or lower "
            f"max_new_tokens{how_to_extend(config)}"
        )


def checked_row_numbers(row_numbers: Sequence[int] | None, batch_size: int) -> Sequence[int]:
    """The number of each row, by default its place in the batch.

    Raises:
        ValueError: there is not one for each row.
    """
    if row_numbers is None:
        return range(batch_size)
    if len(row_numbers) != batch_size:
        raise ValueError(f"{len(row_numbers)} row_numbers for {batch_size} prompts: give one for each prompt")
    return row_numbers
