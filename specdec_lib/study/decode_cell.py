"""One decoding call of a cell, also with an acceptance that is given: pairs of random weights accept nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.sampling import RandomOps
from specdec_lib.decoding.verification import RANDOM, Verification, verify
from specdec_lib.methods import make_proposer
from specdec_lib.models.pair import Pair
from specdec_lib.study.cells import NATURAL, Cell
from specdec_lib.study.transformers_generate import transformers_decode


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


def decode_cell(
    pair: Pair,
    cell: Cell,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    seed: int,
) -> DecodeResult:
    """Decode the `prompts` of a cell, 1-D int64 tensors, as it says; the seed decides every random number."""
    target, sampling = pair.target, cell.sampling
    if cell.engine == "transformers":
        return transformers_decode(target, prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    given: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling}
    given["generator"] = torch.Generator().manual_seed(seed)
    given["stop_token_ids"] = pair.stop_token_ids if cell.stop == NATURAL else ()
    if cell.num_draft_tokens is None:
        return autoregressive_decode(target, prompts, **given)
    assert None not in (cell.verification, cell.draft_length), "only the baseline has no rule and no draft length"
    rule = GivenAcceptance(cell.accepted_per_step) if cell.accepted_per_step else cell.verification
    given |= {"num_draft_tokens": cell.num_draft_tokens, "verification": rule, "draft_length": cell.draft_length}
    return speculative_decode(target, make_proposer(cell.method, pair), prompts, **given)
