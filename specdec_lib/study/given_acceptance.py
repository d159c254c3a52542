"""Decoding with an acceptance that is given instead of found: for pairs of random weights, which accept nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.sampling import RandomOps
from specdec_lib.decoding.verification import RANDOM, Verification, verify


@dataclass(frozen=True)
class GivenAcceptance:
    """A verification rule that does all the work of `verify`, then keeps a stated number of draft tokens.

    Step n of row b keeps number (n + b) of the sequence, so that the rows of a batch advance differently; never more
    than were drafted.

    Args:
        accepted_per_step: draft tokens to keep in successive steps; starts over at its end.
    """

    accepted_per_step: tuple[int, ...]
    capturable = True
    state: dict[str, torch.Tensor] = field(default_factory=dict, compare=False)

    def start(self, call: Call) -> None:
        """Begin a call. What counts the steps is on the device and stays in place, so that a step can be captured."""
        tokens = call.rows.tokens  # [B, capacity]
        place = torch.arange(len(tokens), device=tokens.device)
        if "place" in self.state and len(self.state["place"]) == len(place):
            self.state["place"].copy_(place)
        else:
            self.state.update(place=place, sequence=torch.tensor(self.accepted_per_step, device=tokens.device))

    def __call__(
        self,
        target_probs: torch.Tensor,  # [B, gamma+1, V]
        draft_probs: torch.Tensor,  # [B, gamma, V]
        draft_tokens: torch.Tensor,  # [B, gamma]
        uniforms: torch.Tensor,  # [B, gamma+1]
        ops: RandomOps = RANDOM,
    ) -> Verification:
        next_token = verify(target_probs, draft_probs, draft_tokens, uniforms, ops).next_token
        drafted = draft_probs.gather(2, draft_tokens[:, :, None])[:, :, 0] > 0  # [B, gamma]
        sequence, place = self.state["sequence"], self.state["place"]
        given = sequence[place % len(sequence)]
        place += 1
        return Verification(torch.minimum(given, drafted.long().cumprod(dim=1).sum(dim=1)), next_token)
