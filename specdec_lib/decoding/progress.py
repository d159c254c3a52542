"""What the host knows of a call: times, and what it read in the report of each step."""

from __future__ import annotations

import time


class Progress:
    """Seconds and emitted tokens of each step, and bounds on what is to come, as last seen by the host.

    Args:
        longest_prompt: tokens of the longest prompt.
        max_new_tokens: of every row.

    Attributes:
        times: seconds since the call began, at the end of the prefill and of each step.
        emitted: tokens of each row, `[1 + steps, B]`.
        tested: draft tokens of each row that were accepted or rejected, of the same shape.
        longest: the longest length.
        max_remaining: the most tokens that an unfinished row may still emit.
        capture_s: seconds spent on capturing steps, which `times` leave out.
        replayed: whether steps were replayed.
    """

    def __init__(self, longest_prompt: int, max_new_tokens: int):
        self.started = time.perf_counter()
        self.longest_possible = longest_prompt + max_new_tokens
        self.longest, self.max_remaining = longest_prompt, max_new_tokens
        self.times: list[float] = []
        self.emitted: list[list[int]] = []
        self.tested: list[list[int]] = []
        self.capture_s, self.replayed = 0.0, False

    def read(self, report: list[int]) -> bool:
        """Take in the report of the next step; whether every row is done.

        Raises:
            ValueError: the target's or the draft's logits held a NaN in this step.
        """
        self.times.append(time.perf_counter() - self.started)
        self.max_remaining, self.longest, saw_nan, *of_rows = report
        if saw_nan:
            raise ValueError(
                f"the logits hold NaN at step {len(self.times) - 1} (0 is the prefill): "
                "check the weights, or load them in float32"
            )
        batch_size = len(of_rows) // 2
        self.emitted.append(of_rows[:batch_size])
        self.tested.append(of_rows[batch_size:])
        return self.max_remaining == 0

    def leave_out(self, seconds: float) -> None:
        """Let the clock stand still for the `seconds` that capturing a step took."""
        self.capture_s += seconds
        self.started += seconds
