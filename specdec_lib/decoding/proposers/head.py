"""Drafts with a one-layer head that reads the target's hidden states (EAGLE, arXiv 2401.15077).

The head's input at position t is token t+1 together with the target's features of token t. While drafting on, its own
output stands in for the features that the target has not computed yet.
"""

from __future__ import annotations

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.proposer import Drafting, Proposal
from specdec_lib.decoding.rows import Rows
from specdec_lib.models.draft_head import DraftHead


def start_head(head: DraftHead, call: Call) -> Drafting:
    """Drafting with `head` in a call: token by token, in one pass, or in one call of the C++ kernels."""
    if head.parallel:
        from specdec_lib.decoding.proposers.parallel_head import ParallelHeadDrafting  # a subclass of what is here

        return ParallelHeadDrafting(head, call)
    plain = (call.sampling.top_k, call.sampling.top_p) == (0, 1) and not call.length.looks_at_logits
    one_call = call.ops.drafts_in_one_call and head.fused is not None and plain
    return OneCallHeadDrafting(head, call) if one_call else HeadDrafting(head, call)


class HeadDrafting(Drafting):
    """One call's drafting with a head, whose cache holds the pairs of tokens and features that it has read."""

    def __init__(self, head: DraftHead, call: Call):
        self.head, self.ops, self.sampling, self.length = head, call.ops, call.sampling, call.length
        self.cache = call.new_cache(head, "draft", call.rows.capacity + head.block_size)

    def read_prompt(self, rows: Rows, start: int, end: int, features: torch.Tensor) -> None:
        # The pair of the last prompt position waits for the first emitted token: `propose` reads it.
        self.head.forward(rows.tokens[:, start + 1 : end + 1], self.head.fuse(features), self.cache)
        self.cache.commit((rows.prompt_lengths - start).clamp(0, end - start), at_most=end - start)

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        hidden = self._read_verified(rows)  # [B, 1, hidden_size]
        tokens = [rows.tokens[:, :0]]
        probs = [torch.empty(rows.batch_size, 0, len(self.head.scored_ids), device=hidden.device)]
        for position in range(num_draft_tokens):
            if position > 0:
                hidden = self._next_hidden(position, tokens[-1], hidden)
            logits = self.head.scores(hidden[:, 0])  # [B, scored]
            if self.length.ends_before(logits):
                break
            here = self.ops.probabilities(logits)
            token = self.ops.choose_among(self.head.scored_ids, here, uniforms[:, position])
            tokens.append(token[:, None])
            probs.append(self.length.keep(here)[:, None])
        scored = torch.cat(probs, dim=1)
        everywhere = scored.new_zeros(*scored.shape[:2], self.head.vocab_size)
        return torch.cat(tokens, dim=1), everywhere.index_copy_(2, self.head.scored_ids, scored)

    def _next_hidden(self, position: int, token: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:  # [B, 1, H]
        """What the head makes of the drafted `token` `[B, 1]` and its own output `hidden` before it."""
        hidden = self.head.forward(token, hidden, self.cache)
        self.cache.commit(1, at_most=1)
        return hidden

    def _read_verified(self, rows: Rows) -> torch.Tensor:  # [B, 1, hidden_size], at each row's last token
        """Read the pairs of the tokens that the last step emitted."""
        known = rows.lengths - 1 - rows.num_emitted  # pairs read before the last step
        index = known[:, None] + 1 + torch.arange(rows.width, device=known.device)
        self.cache.set_lengths(known, rows.max_length - 1)
        hidden = self.head.forward(rows.tokens.gather(1, index), self.head.fuse(rows.features), self.cache)
        self.cache.set_lengths(rows.lengths - 1, rows.max_length - 1)
        newest = (rows.num_emitted - 1).clamp(min=0)[:, None, None]
        return hidden.gather(1, newest.expand(-1, 1, hidden.shape[-1]))


class OneCallHeadDrafting(HeadDrafting):
    """The same with the C++ kernels: reading the verified tokens and drafting all tokens is one call."""

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        assert self.head.fused is not None
        text, numbers = (rows.tokens, rows.lengths, rows.num_emitted), uniforms[:, :num_draft_tokens].contiguous()
        return self.head.fused.draft(*text, rows.features, self.cache, self.sampling.temperature, numbers)
