"""Drafts with a head that drafts all positions in one pass (P-EAGLE, arXiv 2602.01469; DFlash).

No drafted position sees the tokens drafted before it. So each is drawn from its own distribution, which is reported.
"""

from __future__ import annotations

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.head import HeadDrafting
from specdec_lib.decoding.rows import Rows
from specdec_lib.models.draft_head import DraftHead


class ParallelHeadDrafting(HeadDrafting):
    """One call's drafting: after the verified pairs, the head reads all drafted positions at once.

    ValueError for more draft tokens than the head has places for.
    """

    def __init__(self, head: DraftHead, call: Call):
        super().__init__(head, call)
        self.num_tokens = call.num_draft_tokens
        if 0 < head.most_tokens < self.num_tokens:
            raise ValueError(
                f"num_draft_tokens is {self.num_tokens}: {head.name} drafts at most {head.most_tokens} in its block of "
                f"{head.block_size}, give no more"
            )

    def _read_verified(self, rows: Rows) -> torch.Tensor:
        newest = super()._read_verified(rows)
        self.drafted = self.head.in_one_pass(newest, rows.last_token(), self.num_tokens, self.cache)
        return self.drafted[:, :1]

    def _next_hidden(self, position: int, token: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.drafted[:, position : position + 1]
