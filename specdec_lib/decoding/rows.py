"""The rows of a batch on the device: their tokens and lengths, and when each is done.

All tensors are made once and then changed in place, so that a captured step finds them where they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdec_lib.models.runner import LanguageModel


class Rows:
    """A ragged batch while it is decoded; the same for the baseline and for speculation.

    Args:
        target: decides device, vocabulary and the width of its features.
        batch_size: number of rows B.
        capacity: positions held for each row.
        width: the tokens of a pass in a row, gamma + 1; of two chains 2 gamma + 1. A step emits no more, and may write
            this far past a row's length.
        num_stops: number of stop tokens S.

    Attributes:
        tokens: `[B, capacity]` int64, prompt and emitted tokens; what lies past a row's length is never read.
        lengths: `[B]` int64, prompt and emitted tokens of each row.
        ends: `[B]` int64, the length at which a row is done.
        done: `[B]` bool.
        num_emitted: `[B]` int64, tokens that the last step emitted.
        num_tested: `[B]` int64, draft tokens that it accepted or rejected.
        features: `[B, width, F]`, the target's features of the tokens that it verified last.
        saw_nan: a bool on the device: some probability was NaN.
        report: `[3 + 2 B]` int64, what the host reads after a step: the most tokens that an unfinished row may still
            emit, the longest length, `saw_nan`, `num_emitted`, and `num_tested`.
        max_length: an upper bound of `lengths` that the host knows; the loop sets it before each step.
        max_new_tokens: that a row emits at most.
    """

    def __init__(self, target: LanguageModel, *, batch_size: int, capacity: int, width: int, num_stops: int):
        device = target.device
        self.batch_size, self.capacity, self.width, self.vocab_size = batch_size, capacity, width, target.vocab_size
        self.tokens = torch.zeros(batch_size, capacity, dtype=torch.int64, device=device)
        self.prompt_lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        per_row = (torch.zeros_like(self.prompt_lengths) for _ in range(4))
        self.lengths, self.ends, self.num_emitted, self.num_tested = per_row
        self.done = torch.zeros(batch_size, dtype=torch.bool, device=device)
        self.stop_token_ids = torch.zeros(num_stops, dtype=torch.int64, device=device)
        feature_width = target.hidden_size * (1 + len(target.feature_layers))
        self.features = torch.zeros(batch_size, width, feature_width, dtype=target.dtype, device=device)
        self.saw_nan = torch.zeros((), dtype=torch.bool, device=device)
        self.report = torch.zeros(3 + 2 * batch_size, dtype=torch.int64, device=device)
        self.max_length = self.max_new_tokens = 0

    def fill(self, prompts: Sequence[torch.Tensor], max_new_tokens: int, stop_token_ids: Sequence[int]) -> None:
        """Begin with these prompts, B 1-D int64 tensors that fit the capacity, and as many stop tokens as before."""
        assert max(map(len, prompts)) + max_new_tokens + self.width <= self.capacity
        assert (len(prompts), len(stop_token_ids)) == (self.batch_size, len(self.stop_token_ids))
        self.max_length, self.max_new_tokens = max(map(len, prompts)), max_new_tokens
        self.prompt_lengths.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        self.lengths.copy_(self.prompt_lengths)
        self.ends.copy_(self.prompt_lengths + max_new_tokens)
        self.stop_token_ids.copy_(torch.tensor(list(stop_token_ids), dtype=torch.int64))
        for row, prompt in enumerate(prompts):
            self.tokens[row, : len(prompt)] = prompt.to(self.tokens.device)
        for buffer in (self.done, self.saw_nan, self.num_emitted, self.num_tested, self.features):
            buffer.zero_()

    def last_token(self) -> torch.Tensor:  # [B, 1]
        """The last token of each row."""
        return self.tokens.gather(1, (self.lengths - 1)[:, None])

    def append(
        self,
        draft_tokens: torch.Tensor,  # [B, gamma]
        num_accepted: torch.Tensor,  # [B]
        next_token: torch.Tensor,  # [B]
    ) -> None:
        """Append to each unfinished row its accepted tokens and the next one, cut after a stop token or at its end."""
        step = torch.cat([draft_tokens, next_token[:, None]], dim=1)  # [B, gamma+1]
        step.scatter_(1, num_accepted[:, None], next_token[:, None])
        index = torch.arange(step.shape[1], device=step.device)
        self.tokens.scatter_(1, self.lengths[:, None] + index, step)
        emitted = (num_accepted + 1).minimum(self.ends - self.lengths) * ~self.done
        if len(self.stop_token_ids):
            stops = (step[:, :, None] == self.stop_token_ids).any(dim=2) & (index < emitted[:, None])
            emitted = ((index < emitted[:, None]) & (stops.cumsum(dim=1) - stops.long() == 0)).sum(dim=1)
            self.done |= stops.any(dim=1)
        self.num_emitted.copy_(emitted)
        self.lengths += emitted
        self.done |= self.lengths >= self.ends

    def write_report(self) -> None:
        """Say in `report` how the step went."""
        remaining = ((self.ends - self.lengths) * ~self.done).amax(dim=0, keepdim=True)
        longest = self.lengths.amax(dim=0, keepdim=True)
        torch.cat([remaining, longest, self.saw_nan[None], self.num_emitted, self.num_tested], out=self.report)

    def output(self) -> list[torch.Tensor]:
        """New tokens of each row, on the CPU: ordinary tensors, which training may use and anyone may change."""
        tokens, starts, ends = self.tokens.cpu(), self.prompt_lengths.tolist(), self.lengths.tolist()
        with torch.inference_mode(False):
            return [tokens[row, start:end].clone() for row, (start, end) in enumerate(zip(starts, ends, strict=True))]
