"""Copies where the text repeats itself and drafts everywhere else, row by row and step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.decoding.proposers.proposer import Drafting, Proposal, Proposer, widened
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.verification import chance_of


@dataclass(frozen=True)
class CompositeProposer(Proposer):
    """Lookup first, a draft where it finds nothing.

    Args:
        draft: proposes for the rows in which `lookup` finds nothing.
        lookup: by default it copies after two or more tokens that stood before: a single one is mostly chance.
    """

    draft: Proposer
    lookup: Proposer = field(default_factory=lambda: NgramProposer(longest=5, shortest=2))

    @property
    def capturable(self) -> bool:
        return self.draft.capturable and self.lookup.capturable

    @property
    def looks_ahead(self) -> bool:
        return self.draft.looks_ahead or self.lookup.looks_ahead

    def start(self, call: Call) -> Drafting:
        draft = self.draft.start(call)
        draft.expect_other_drafts()
        return CompositeDrafting(draft, self.lookup.start(call), call.host_may_branch)


class CompositeDrafting(Drafting):
    """One call's drafting with both."""

    def __init__(self, draft: Drafting, lookup: Drafting, host_may_branch: bool):
        self.draft, self.lookup, self.host_may_branch = draft, lookup, host_may_branch

    def read_prompt(self, rows: Rows, start: int, end: int, features: torch.Tensor) -> None:
        self.draft.read_prompt(rows, start, end, features)
        self.lookup.read_prompt(rows, start, end, features)

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        copied, copied_probs = widened(self.lookup.propose(rows, num_draft_tokens, uniforms), num_draft_tokens)
        found = chance_of(copied[:, :1], copied_probs[:, :1]) > 0  # [B, 1]
        if self.host_may_branch and found.all():
            self.draft.propose(rows, 1, uniforms)  # it drafts in vain, but reads what was emitted
            return copied, copied_probs
        drafted, drafted_probs = widened(self.draft.propose(rows, num_draft_tokens, uniforms), num_draft_tokens)
        if self.host_may_branch and not found.any():
            return drafted, drafted_probs
        return torch.where(found, copied, drafted), torch.where(found[:, :, None], copied_probs, drafted_probs)
