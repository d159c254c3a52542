"""What it takes to be a proposer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.verification import chance_of

if TYPE_CHECKING:
    from specdec_lib.decoding.call import Call

Proposal = tuple[torch.Tensor, torch.Tensor]  # draft_tokens [B, m], draft_probs [B, m, V], m at most gamma


def trimmed(proposal: Proposal) -> Proposal:
    """Without the last positions, at which no row drafts: the target need not read them. Looks at values."""
    tokens, probs = proposal
    drafted = (chance_of(tokens, probs) != 0).any(dim=0).tolist()  # a NaN stays, to be noticed
    longest = max((place for place, here in enumerate(drafted, start=1) if here), default=0)
    return tokens[:, :longest], probs[:, :longest]


def widened(proposal: Proposal, width: int) -> Proposal:
    """With further positions, up to `width`, at which nothing is drafted."""
    tokens, probs = proposal
    missing = width - tokens.shape[1]
    pad = torch.nn.functional.pad
    return (pad(tokens, (0, missing)), pad(probs, (0, 0, 0, missing))) if missing else proposal


class Drafting:
    """Proposes tokens in one call. The smallest proposer has `propose` alone."""

    def read_prompt(self, rows: Rows, start: int, end: int, features: torch.Tensor) -> None:
        """Read positions start..end of the prompts, for which the target computed `features` `[B, end-start, F]`."""

    def expect_other_drafts(self) -> None:
        """Tokens of another proposer may be verified in place of this one's; called before the prompt is read."""

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        """Propose gamma tokens after each row's last one, with the distributions that they were drawn from.

        Where there is nothing to propose, the row of `draft_probs` is zero. Where no row has more, the last positions
        may be left out. The first tokens are the same, however many are asked for.

        Args:
            uniforms: `[B, gamma+1]`, the random numbers of this proposal; the one at position i draws token i.
        """
        raise NotImplementedError


class Proposer(Drafting):
    """Where draft tokens come from.

    `start` returns what proposes in a call: by default the proposer itself. One that keeps a cache or a table during a
    call returns a new `Drafting` object, so that a proposer can serve several calls.

    Attributes:
        chains: how many chains of gamma tokens it proposes; two are those of `two_chains.py`.
    """

    chains = 1

    @property
    def capturable(self) -> bool:
        """Whether `propose` is nothing but operators on tensors, so that a CUDA graph can hold it.

        Then all that it keeps between steps is in caches of `call.new_cache`. Captured steps are kept for later calls
        whose proposer is equal to this one.
        """
        return False

    @property
    def looks_ahead(self) -> bool:
        """Whether a draft token may depend on the random number of a later position; the enumeration must know."""
        return False

    def start(self, call: Call) -> Drafting:
        """Prepare for a call; raises ValueError if this proposer cannot serve it."""
        return self
