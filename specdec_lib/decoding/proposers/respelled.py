"""Drafts with a model of another vocabulary, which reads some of the target's tokens as several of its own.

Timor et al. 2025 (arXiv 2502.05202). The draft's text of a row has a length of its own. It follows from the row's
tokens alone, so nothing about it is kept between steps but the draft's cache.

Either way of drafting is exact, whatever the vocabularies have in common. Shared tokens: the distribution that is
reported is the one that was drawn from. Text: what is proposed is certain, as a lookup is, and each token is then kept
with the probability that the target gives it.
"""

from __future__ import annotations

import torch

from specdec_lib.config import PREFILL_CHUNK
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.model import ModelDrafting
from specdec_lib.decoding.proposers.proposer import Proposal
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.verification import chance_of
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.translation import Translation

EXPANSION, SLACK = 2, 64  # a row drafts while its text takes at most EXPANSION * (its tokens) + SLACK of the draft's


def start_respelled(draft: LanguageModel, call: Call) -> RespelledDrafting:
    """Drafting shared tokens, or text, as the draft's translation says."""
    assert draft.translation is not None
    kind = TextDrafting if draft.translation.retokenise else RespelledDrafting
    return kind(draft, call, draft.translation)


class RespelledDrafting(ModelDrafting):
    """One call's drafting of shared tokens.

    A row whose text has taken too many of the draft's tokens at some point, or more than its context, drafts nothing
    from then on. That depends on the row alone.
    """

    def __init__(self, draft: LanguageModel, call: Call, translation: Translation):
        super().__init__(draft, call)
        self.respelling, self.host_may_branch = translation, call.host_may_branch

    def room(self, positions: int) -> int:
        return EXPANSION * positions + SLACK

    def read_prompt(self, rows: Rows, start: int, end: int, features: torch.Tensor) -> None:
        if start > 0:
            return  # all of the prompts was read with their first chunk
        tokens = rows.tokens[:, : rows.max_length]
        ends = self.respelling.ends(tokens, rows.prompt_lengths)
        length = self._limited(ends[:, -1], rows.prompt_lengths)
        longest = int(length.max())  # once in a call: it may wait for the device
        for first in range(0, longest, PREFILL_CHUNK):
            begin = torch.full_like(length, first)
            self.cache.set_lengths(begin, first)
            width = min(PREFILL_CHUNK, longest - first)
            counts = (length - first).clamp(0, width)
            self._read(self.respelling.spelled(tokens, ends, begin, width), counts)
        self.cache.set_lengths(length, longest)

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        tokens, probs = super().propose(rows, num_draft_tokens, uniforms)
        return tokens, probs * self.fits[:, None, None]

    def _read_new_tokens(self, rows: Rows) -> torch.Tensor:  # [B, hidden_size], at each row's last token
        """Read what the last step emitted, as the draft spells it; reading a token again changes nothing."""
        tokens = rows.tokens[:, : rows.max_length]
        ends = self.respelling.ends(tokens, rows.lengths)
        self.fits = self._fit(ends, rows)
        length = self._limited(ends[:, -1], rows.lengths)
        longest, count = self._bounds(rows, ends, length)
        start = (length - count).clamp(min=0)
        self.cache.set_lengths(start, longest - count)
        hidden = self._read(self.respelling.spelled(tokens, ends, start, count))
        self.cache.set_lengths(length, longest)
        last = (length - 1 - start)[:, None, None]
        return hidden.gather(1, last.expand(-1, 1, hidden.shape[-1]))[:, 0]

    def _bounds(self, rows: Rows, ends: torch.Tensor, length: torch.Tensor) -> tuple[int, int]:
        """The longest draft text, and how many tokens at its end some row may not have read."""
        if not self.host_may_branch:
            longest, spelled = self.room(rows.max_length), self.respelling.longest
            # Of its own draft only the last token is unread, which is shared, and the token after it.
            return longest, min(longest, 1 + spelled if self.unread == 2 else self.unread * spelled)
        before = (rows.lengths - self.unread).clamp(min=0)
        known = ends.gather(1, (before - 1).clamp(min=0)[:, None])[:, 0] * (before > 0)
        return int(length.max()), max(int((length - known).max()), 1)

    def _fit(self, ends: torch.Tensor, rows: Rows) -> torch.Tensor:  # [B] bool
        places = torch.arange(1, ends.shape[1] + 1, device=ends.device)
        in_context = ends[:, -1] + rows.width <= self.draft.context_length
        return (ends <= EXPANSION * places + SLACK).all(dim=1) & in_context

    def _limited(self, length: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:  # [B], [B] -> [B]
        """The length of a draft's text that its cache has room for."""
        return length.minimum(EXPANSION * counts + SLACK)

    def _read(self, draft_tokens: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:  # [B, m, H]
        return self.draft.forward(draft_tokens, self.cache, counts).hidden


class TextDrafting(RespelledDrafting):
    """One call's drafting of text, which the target's tokenizer cuts into tokens; those are proposed as certain."""

    def __init__(self, draft: LanguageModel, call: Call, translation: Translation):
        super().__init__(draft, call, translation)
        self.expect_other_drafts()  # what the target's tokens read as is not always what was drafted

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        hidden = self._read_new_tokens(rows)
        drafted, chances = [rows.tokens[:, :0]], [torch.ones(rows.batch_size, 1, device=hidden.device)]
        for position in range(num_draft_tokens):
            if position > 0:
                hidden = self._read(drafted[-1])[:, 0]
                self.cache.commit(1, at_most=1)
            logits = self.draft.logits(hidden)
            if self.length.ends_before(logits):
                break
            probs = self.ops.probabilities(logits)
            drafted.append(self.ops.choose(probs, uniforms[:, position])[:, None])
            chances.append(chance_of(drafted[-1], self.length.keep(probs)[:, None]))
        whole = torch.cat(chances, dim=1)  # [B, 1 + drafted], 0 where a row's draft had ended
        tokens, known = self._as_target_tokens(torch.cat(drafted, dim=1), (whole[:, 1:] != 0).sum(dim=1))
        certain = (whole * 0 + 1).amin(dim=1, keepdim=True)  # NaN if the draft's logits hold one
        probs = torch.zeros(*tokens.shape, rows.vocab_size, dtype=whole.dtype, device=tokens.device)
        weights = certain * known * self.fits[:, None]
        return tokens, probs.scatter_(2, tokens[:, :, None], weights[:, :, None])

    def _as_target_tokens(self, drafted: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The target's tokens of each row's drafted text, the first `counts` `[B]` of `[B, m]`; and which there are."""
        assert self.respelling.retokenise is not None
        tokens, known = torch.zeros_like(drafted), torch.zeros_like(drafted, dtype=torch.bool)
        for row, (draft_tokens, count) in enumerate(zip(drafted.tolist(), counts.tolist(), strict=True)):
            found = self.respelling.retokenise(draft_tokens[:count])[: drafted.shape[1]]
            tokens[row, : len(found)], known[row, : len(found)] = torch.tensor(found, dtype=torch.int64), True
        return tokens, known
