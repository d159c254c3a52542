"""What it takes to be a proposer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from specdec_lib.decoding.rows import Rows

if TYPE_CHECKING:
    from specdec_lib.decoding.call import Call

Proposal = tuple[torch.Tensor, torch.Tensor]  # draft_tokens [B, gamma], draft_probs [B, gamma, V]


class Drafting:
    """Proposes tokens in one call. The smallest proposer has `propose` alone."""

    def read_prompt(self, rows: Rows, start: int, end: int, features: torch.Tensor) -> None:
        """Read positions start..end of the prompts, for which the target computed `features` `[B, end-start, F]`."""

    def expect_other_drafts(self) -> None:
        """Tokens of another proposer may be verified in place of this one's; called before the prompt is read."""

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        """Propose gamma tokens after each row's last one, with the distributions that they were drawn from.

        Where there is nothing to propose, the row of `draft_probs` is zero.

        Args:
            uniforms: `[B, gamma+1]`, the random numbers of this proposal; the one at position i draws token i.
        """
        raise NotImplementedError


class Proposer(Drafting):
    """Where draft tokens come from.

    `start` returns what proposes in a call: by default the proposer itself. One that keeps a cache or a table during a
    call returns a new `Drafting` object, so that a proposer can serve several calls.
    """

    @property
    def capturable(self) -> bool:
        """Whether `propose` is nothing but operators on tensors, so that a CUDA graph can hold it.

        Then all that it keeps between steps is in caches of `call.new_cache`. Captured steps are kept for later calls
        whose proposer is equal to this one.
        """
        return False

    def start(self, call: Call) -> Drafting:
        """Prepare for a call; raises ValueError if this proposer cannot serve it."""
        return self
