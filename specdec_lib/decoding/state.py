"""The rows in flight: their tokens and lengths, when they are done, and the one look the host takes at each step."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.runner import PREFILL_CHUNK, LanguageModel


class DecodeState:
    """A ragged batch while it is decoded. Baseline and speculation share it, so stopping and timing cannot differ.

    Args:
        prompts: B one-dimensional int64 tensors of token ids, of any lengths.
        max_new_tokens: exactly how many tokens each row gets unless a stop token ends it earlier.
        stop_token_ids: a row ends with the first of these it emits.
        slack: how many positions behind its length a step may write.

    Raises:
        ValueError: no prompts, an empty one, a token id outside the vocabulary, or more tokens than the context holds.
    """

    def __init__(
        self,
        target: LanguageModel,
        prompts: Sequence[torch.Tensor],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        slack: int,
    ):
        _check_prompts(target, prompts, max_new_tokens)
        device = target.device
        self.started = time.perf_counter()
        self.max_new_tokens, self.slack = max_new_tokens, slack
        self.vocab_size = target.vocab_size
        prompt_lengths = [len(prompt) for prompt in prompts]
        self.batch_size = len(prompts)
        self.longest_prompt = max(prompt_lengths)
        self.max_length = self.longest_prompt  # a bound the host knows without asking the device
        self.capacity = self.longest_prompt + max_new_tokens + slack
        self.prompt_lengths = torch.tensor(prompt_lengths, device=device)  # [B]
        self.lengths = self.prompt_lengths.clone()  # [B], prompt and emitted tokens
        self.tokens = torch.zeros(self.batch_size, self.capacity, dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            self.tokens[row, : len(prompt)] = prompt.to(device)
        self.done = torch.zeros(self.batch_size, dtype=torch.bool, device=device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)
        self.stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
        self.num_emitted = torch.zeros(self.batch_size, dtype=torch.int64, device=device)  # by the last step
        self.features = torch.empty(0, device=device)  # [B, m, F] of the tokens that the last step verified
        self.emitted: list[torch.Tensor] = []  # [B] for prefill and each step
        self.times: list[float] = []  # seconds since the start, for prefill and each step

    @property
    def remaining(self) -> torch.Tensor:  # [B]
        """Tokens that each row may still emit."""
        return self.max_new_tokens - (self.lengths - self.prompt_lengths)

    def last_tokens(self, count: int) -> torch.Tensor:  # [B, count]
        """The last `count` tokens of each row."""
        behind = torch.arange(-count, 0, device=self.lengths.device)
        return self.tokens.gather(1, self.lengths[:, None] + behind)

    def check(self, probs: torch.Tensor) -> None:
        """Remember whether probabilities `[..., V]` hold a NaN; `look` raises."""
        self.broken |= probs.sum(dim=-1).isnan().any()

    def emit(self, tokens: torch.Tensor, num_tokens: torch.Tensor) -> None:
        """Append the first `num_tokens` `[B]` of `tokens` `[B, n]` to each unfinished row, up to a stop token."""
        index = torch.arange(tokens.shape[1], device=tokens.device)
        offered = (index < num_tokens[:, None]) & ~self.done[:, None]
        stops = torch.isin(tokens, self.stops) & offered
        kept = offered & (stops.cumsum(dim=1) - stops.long() == 0)
        self.tokens.scatter_(1, self.lengths[:, None] + index, tokens)
        self.num_emitted = kept.sum(dim=1)
        self.emitted.append(self.num_emitted)
        self.lengths = self.lengths + self.num_emitted
        self.done = self.done | stops.any(dim=1) | (self.remaining <= 0)

    def look(self) -> bool:
        """The step's one synchronisation: whether every row is done; notes the time and the longest row.

        Raises:
            ValueError: the target's or the draft's logits held a NaN in this step.
        """
        done, longest, broken = torch.stack([self.done.all(), self.lengths.max(), self.broken]).tolist()
        self.times.append(time.perf_counter() - self.started)
        if broken:
            raise ValueError(
                f"the logits hold NaN at step {len(self.times) - 1} (0 is the prefill): "
                "check the weights, or load them in float32"
            )
        self.max_length = longest
        return bool(done)

    def output(self) -> list[torch.Tensor]:
        """New tokens of each row, on the CPU."""
        tokens, starts, ends = self.tokens.cpu(), self.prompt_lengths.tolist(), self.lengths.tolist()
        return [tokens[row, start:end].clone() for row, (start, end) in enumerate(zip(starts, ends, strict=True))]

    def prompt_chunks(self) -> list[tuple[int, int]]:
        """Where each prefill pass starts and ends."""
        starts = range(0, self.longest_prompt, PREFILL_CHUNK)
        return [(start, min(start + PREFILL_CHUNK, self.longest_prompt)) for start in starts]

    def prompt_tokens_in(self, start: int, end: int) -> torch.Tensor:  # [B]
        """How many of the positions start..end belong to each row's prompt."""
        return (self.prompt_lengths - start).clamp(0, end - start)


def _check_prompts(target: LanguageModel, prompts: Sequence[torch.Tensor], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least 1")
    if not prompts:
        raise ValueError("there are no prompts: give a list of at least one 1-D tensor of token ids")
    for row, prompt in enumerate(prompts):
        if prompt.dim() != 1 or prompt.dtype != torch.int64:
            raise ValueError(
                f"prompt {row} is {prompt.dtype} {list(prompt.shape)}: give a 1-D int64 tensor of token ids"
            )
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty: give it at least one token, such as the start-of-text token")
        if int(prompt.min()) < 0 or int(prompt.max()) >= target.vocab_size:
            raise ValueError(
                f"prompt {row} has a token id outside 0..{target.vocab_size - 1}: use the target's tokenizer"
            )
        check_context(target, len(prompt), max_new_tokens)


def check_generator(generator: torch.Generator, target: LanguageModel) -> None:
    """Refuse a generator on another device than the target's."""
    if generator.device.type != target.device.type:
        raise ValueError(
            f"the generator is on {generator.device} and {target.name} on {target.device}: "
            f"make it with torch.Generator({target.device.type!r})"
        )


def check_context(model: LanguageModel | DraftHead, prompt_tokens: int, max_new_tokens: int) -> None:
    """Refuse more tokens than `model` has positions for."""
    if prompt_tokens + max_new_tokens > model.context_length:
        raise ValueError(
            f"{prompt_tokens} prompt tokens and {max_new_tokens} new ones exceed the context of {model.name}, "
            f"{model.context_length} tokens: shorten the prompt or lower max_new_tokens"
        )
