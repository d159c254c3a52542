"""What a decoding call returns: tokens, counters and raw times. Every rate is derived here, from the counters."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(repr=False)
class DecodeResult:
    """The outcome of one decoding call over a batch.

    Attributes:
        tokens: new tokens of each row, int64, cut after the first stop token.
        ttft_s: seconds to the first token of every row, all prefills included; they begin when the prompts are checked.
        step_s: seconds that each step took.
        step_tokens: tokens that each step emitted in each row, `[steps, B]`.
        step_tested: draft tokens that each step accepted or rejected in each row, `[steps, B]`.
        steps: verification passes, counted once for every row that was still decoding. 0 for the baseline.
        drafted, tested, accepted: draft tokens; a token is tested if all before it in its step were accepted. What is
            drafted past the last token that a row may emit is paid for, and counts as drafted.
        tested_by_position, accepted_by_position: the same by position in the draft, gamma numbers each.
        capture_s: seconds that went into capturing steps in CUDA graphs during the call; in no other time here.
        replayed: whether steps were replays of such graphs.
    """

    tokens: list[torch.Tensor]
    ttft_s: float
    step_s: list[float]
    step_tokens: list[list[int]]
    step_tested: list[list[int]] = field(default_factory=list)
    steps: int = 0
    drafted: int = 0
    tested_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    capture_s: float = 0.0
    replayed: bool = False

    @property
    def new_tokens(self) -> int:
        """Emitted tokens over all rows."""
        return sum(len(row) for row in self.tokens)

    @property
    def tested(self) -> int:
        """Draft tokens that were accepted or rejected."""
        return sum(self.tested_by_position)

    @property
    def accepted(self) -> int:
        """Draft tokens that were emitted."""
        return sum(self.accepted_by_position)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / tested (alpha of Leviathan et al. 2022); None where nothing was tested."""
        return self.accepted / self.tested if self.tested else None

    @property
    def draft_efficiency(self) -> float | None:
        """Accepted / drafted; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens emitted per verification pass; None for the baseline.

        Without stop tokens this is 1 + accepted / steps; a step cut at an accepted stop token emits no further one.
        """
        return (self.new_tokens - len(self.tokens)) / self.steps if self.steps else None

    def emission_times(self, row: int) -> list[float]:
        """Seconds from the call until each token of `row` was there; tokens of one step share their time."""
        times, now = [self.ttft_s], self.ttft_s
        for seconds, counts in zip(self.step_s, self.step_tokens, strict=True):
            now += seconds
            times += [now] * counts[row]
        return times

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens over all rows per second of the whole call, prefill included."""
        return self.new_tokens / (self.ttft_s + sum(self.step_s))

    def __repr__(self) -> str:
        facts = [
            "speculative decoding" if self.steps else "autoregressive decoding",
            f"{self.new_tokens} new tokens in {len(self.tokens)} row(s)",
            f"{self.tokens_per_second:.1f} tokens/s",
            f"first token after {1e3 * self.ttft_s:.1f} ms",
        ]
        if self.acceptance_rate is not None:
            facts.append(f"acceptance rate {self.acceptance_rate:.3f}")
        if self.mean_acceptance_length is not None:
            facts.append(f"{self.mean_acceptance_length:.2f} tokens per target pass")
        return f"DecodeResult({', '.join(facts)})"
