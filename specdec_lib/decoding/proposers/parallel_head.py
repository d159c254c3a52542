"""Drafts with a head that drafts all positions in one pass (P-EAGLE, arXiv 2602.01469).

No drafted position sees the tokens drafted before it. So each is drawn from its own distribution, which is reported.
"""

from __future__ import annotations

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.head import HeadDrafting
from specdec_lib.decoding.rows import Rows
from specdec_lib.models.draft_head import DraftHead


class ParallelHeadDrafting(HeadDrafting):
    """One call's drafting: after the verified pairs, the head reads masked ones for all drafted positions at once."""

    def __init__(self, head: DraftHead, call: Call):
        super().__init__(head, call)
        self.num_masked = call.num_draft_tokens - 1

    def _read_verified(self, rows: Rows) -> torch.Tensor:
        hidden = super()._read_verified(rows)
        if self.num_masked:
            self.masked = self.head.forward(*self.head.masked(rows.batch_size, self.num_masked), self.cache)
        return hidden

    def _next_hidden(self, position: int, token: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.masked[:, position - 1 : position]
