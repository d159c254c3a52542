"""Drafts with a smaller model (Leviathan et al. 2022): a language model or a draft head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.checks import check_context
from specdec_lib.decoding.proposers.head import start_head
from specdec_lib.decoding.proposers.proposer import Drafting, Proposal, Proposer
from specdec_lib.decoding.rows import Rows
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.translation import Translation, fit_vocabulary


@dataclass(frozen=True)
class ModelProposer(Proposer):
    """Drafts with a pair's draft, of either kind.

    Args:
        draft: a language model, which reads the tokens; or a head, which reads the target's hidden states. A language
            model with another vocabulary than the target's has a `translation`, which `load_pair` makes.

    Raises:
        ValueError: the draft is neither.
    """

    draft: LanguageModel | DraftHead

    def __post_init__(self) -> None:
        if not isinstance(self.draft, LanguageModel | DraftHead):
            raise ValueError(f"{type(self.draft).__name__} cannot draft: give the draft of a pair, such as pair.draft")

    @property
    def capturable(self) -> bool:
        """Unless tokenizers handle the draft's text on the host, or its engine reads lengths there."""
        capturable = not isinstance(self.draft, LanguageModel) or self.draft.active_engine.capturable
        return capturable and not self.looks_ahead

    @property
    def looks_ahead(self) -> bool:
        """Of text, what is drafted later decides where the target's tokens end."""
        return self._translation is not None and self._translation.retokenise is not None

    def start(self, call: Call) -> Drafting:
        check_context(self.draft, call.rows.max_length, call.rows.max_new_tokens)
        if isinstance(self.draft, DraftHead):
            return start_head(self.draft, call)
        if self._translation and (self._translation.longest > 1 or self._translation.retokenise):
            from specdec_lib.decoding.proposers.respelled import start_respelled

            return start_respelled(self.draft, call)
        return ModelDrafting(self.draft, call)

    @property
    def _translation(self) -> Translation | None:
        return self.draft.translation if isinstance(self.draft, LanguageModel) else None


class ModelDrafting(Drafting):
    """One call's drafting with a language model, whose cache follows the rows."""

    translation: Translation | None = None

    def __init__(self, draft: LanguageModel, call: Call):
        self.draft, self.ops, self.length = draft, call.ops, call.length
        self.translation = draft.translation
        self.vocab_size, self.width = call.rows.vocab_size, call.rows.width
        self.cache = call.new_cache(draft, "draft", self.room(call.rows.capacity))
        self.unread = 2  # tokens at a row's end that it may not have read: its own last draft token and the next one

    def room(self, positions: int) -> int:
        """Positions in its cache for so many tokens of the target."""
        return positions

    def expect_other_drafts(self) -> None:
        """Of another proposer's draft it has read nothing."""
        self.unread = self.width

    def read_prompt(self, rows: Rows, start: int, end: int, features: torch.Tensor) -> None:
        counts = (rows.prompt_lengths - start).clamp(0, end - start)
        self._forward(rows.tokens[:, start:end], counts)
        self.cache.commit(counts, at_most=end - start)

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        hidden = self._read_new_tokens(rows)  # [B, hidden_size]
        tokens = [rows.tokens[:, :0]]
        probs = [torch.empty(rows.batch_size, 0, self.vocab_size, device=hidden.device)]
        for position in range(num_draft_tokens):
            if position > 0:
                hidden = self._forward(tokens[-1])[:, 0]
                self.cache.commit(1, at_most=1)
            logits = self._target_logits(hidden)
            if self.length.ends_before(logits):
                break
            here = self.ops.probabilities(logits)
            tokens.append(self.ops.choose(here, uniforms[:, position])[:, None])
            probs.append(self.length.keep(here)[:, None])
        return torch.cat(tokens, dim=1), torch.cat(probs, dim=1)

    def _read_new_tokens(self, rows: Rows) -> torch.Tensor:  # [B, hidden_size], at each row's last token
        """Read what the last step emitted; reading a token again changes nothing."""
        count = self.unread
        start = (rows.lengths - count).clamp(min=0)
        self.cache.set_lengths(start, max(rows.max_length - count, 0))
        hidden = self._forward(rows.tokens.gather(1, start[:, None] + torch.arange(count, device=start.device)))
        self.cache.set_lengths(rows.lengths, rows.max_length)
        last = (rows.lengths - 1 - start)[:, None, None]
        return hidden.gather(1, last.expand(-1, 1, hidden.shape[-1]))[:, 0]

    def _forward(self, tokens: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:  # [B, m, H]
        if self.translation is not None:
            tokens = self.translation.read_as(tokens)
        # A target that pads its vocabulary further may emit an id that the draft has no row for: any other will do.
        return self.draft.forward(tokens.clamp(max=self.draft.vocab_size - 1), self.cache, counts).hidden

    def _target_logits(self, hidden: torch.Tensor) -> torch.Tensor:  # [B, hidden_size] -> [B, V]
        logits = self.draft.logits(hidden)
        if self.translation is not None:
            return self.translation.target_logits(logits)
        return fit_vocabulary(logits, self.vocab_size)
