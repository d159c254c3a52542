"""Decoding with an acceptance that is given instead of found: for pairs of random weights, which accept nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdec_lib.decoding.state import DecodeState
from specdec_lib.decoding.verification import Verification, verify
from specdec_lib.study.cell_files import Row

GIVEN = "given"  # the `verification` of rows whose acceptance was replayed
RATES = ("acceptance_rate", "draft_efficiency", "mean_acceptance_length")


class GivenAcceptance:
    """A verifier that does all the work of verification, then keeps a stated number of draft tokens.

    Step n of row b keeps number (n + b) of the sequence, so that the rows of a batch advance differently; never more
    than were drafted.

    Args:
        accepted_per_step: draft tokens to keep in successive steps; begins anew when it ends.
    """

    def __init__(self, accepted_per_step: Sequence[int]):
        self.accepted_per_step = tuple(accepted_per_step)
        self.place = self.sequence = torch.zeros(0, dtype=torch.int64)

    @property
    def capture_key(self) -> tuple[int, ...]:
        return self.accepted_per_step

    def restart(self, state: DecodeState) -> None:
        """Begin anew; what counts the steps lies on the device, so that a step can be captured."""
        device = state.tokens.device
        if len(self.place) != state.batch_size:
            self.sequence = torch.tensor(self.accepted_per_step, device=device)
            self.place = torch.zeros(state.batch_size, dtype=torch.int64, device=device)
        self.place.copy_(torch.arange(state.batch_size))

    def __call__(
        self,
        target_probs: torch.Tensor,  # [B, gamma+1, V]
        draft_probs: torch.Tensor,  # [B, gamma, V]
        draft_tokens: torch.Tensor,  # [B, gamma]
        generator: torch.Generator,
    ) -> Verification:
        verdict = verify(target_probs, draft_probs, draft_tokens, generator)
        drafted = draft_probs.gather(2, draft_tokens[:, :, None])[:, :, 0] > 0  # [B, gamma]
        given = self.sequence[self.place % len(self.sequence)]
        self.place += 1
        return Verification(torch.minimum(given, drafted.long().cumprod(dim=1).sum(dim=1)), verdict.next_token)


def given_columns(row: Row) -> Row:
    """Mark a speculative row as one whose acceptance was given: its counters stay, its rates are no result."""
    return {} if row["verification"] is None else {"verification": GIVEN} | dict.fromkeys(RATES)
