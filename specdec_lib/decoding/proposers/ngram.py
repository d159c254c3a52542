"""Drafts by copying what followed the last tokens where they stood before: prompt lookup, without a second model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.proposers.proposer import Drafting, Proposal, Proposer
from specdec_lib.decoding.rows import Rows


@dataclass(frozen=True)
class NgramProposer(Proposer):
    """Looks the last tokens of a row up in its own text.

    Args:
        longest, shortest: how many last tokens must match; longer matches are preferred, then more recent ones.
    """

    longest: int = 3
    shortest: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"n-grams of {self.shortest} to {self.longest} tokens: give 1 <= shortest <= longest")

    @property
    def capturable(self) -> bool:
        return True

    def start(self, call: Call) -> Drafting:
        return NgramDrafting(self, call.ops)


class NgramDrafting(Drafting):
    """One call's lookup."""

    def __init__(self, proposer: NgramProposer, ops: PlainOps):
        self.proposer, self.ops = proposer, ops

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        return self.ops.copy_continuation(rows, self.proposer.longest, self.proposer.shortest, num_draft_tokens)
