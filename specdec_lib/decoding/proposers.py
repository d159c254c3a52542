"""Where draft tokens come from: a draft model, a draft head on the target's hidden states, or the text itself."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, Self

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.sampling import choose, probabilities
from specdec_lib.decoding.state import DecodeState, check_context
from specdec_lib.decoding.step_loop import capture_key
from specdec_lib.decoding.streams import uniforms
from specdec_lib.kernels import rows, vocabulary
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel

Proposal = tuple[torch.Tensor, torch.Tensor]  # draft_tokens [B, gamma], draft_probs [B, gamma, V]


class Proposer(Protocol):
    """Proposes gamma tokens for every row, with the distributions that they were drawn from.

    Where it has nothing to propose, the row of `draft_probs` is zero. It must propose from `state` alone: what it may
    keep between steps is a cache. If `propose` is nothing but operators on tensors, a property `capture_key` says what
    else decides what it does, and its steps are captured on a GPU (see `step_loop.capture_key`).
    """

    def start(self, state: DecodeState) -> None:
        """Prepare for a new batch; raise ValueError if it cannot serve it."""

    def read_prompt(self, state: DecodeState, start: int, end: int, features: torch.Tensor) -> None:
        """Read positions start..end of the prompts, for which the target computed `features` `[B, end-start, F]`."""

    def propose(
        self, state: DecodeState, num_draft_tokens: int, sampling: SamplingConfig, generator: torch.Generator
    ) -> Proposal:
        """Propose what follows each row's last token."""


class ModelProposer:
    """Drafts with a smaller language model that has the target's vocabulary (Leviathan et al. 2022).

    `ModelProposer(head)` of a draft head makes a `HeadProposer`, so that a pair's draft need not be told apart.
    """

    def __new__(cls, draft: LanguageModel | DraftHead) -> Self:
        is_head = cls is ModelProposer and isinstance(draft, DraftHead)
        return super().__new__(HeadProposer if is_head else cls)  # type: ignore[return-value]

    def __init__(self, draft: LanguageModel | DraftHead):
        if not isinstance(draft, LanguageModel):
            raise ValueError(f"{type(draft).__name__} is no language model to draft with: give a pair's draft")
        self.draft = draft

    @property
    def capture_key(self) -> Hashable:
        return self.draft

    def start(self, state: DecodeState) -> None:
        check_context(self.draft, state.longest_prompt, state.max_new_tokens)
        self.cache = state.new_cache(self.draft, "draft")
        self.alone = True  # a composite says no: then accepted tokens may be none that this draft has read

    def read_prompt(self, state: DecodeState, start: int, end: int, features: torch.Tensor) -> None:
        self._forward(state.tokens[:, start:end])
        self.cache.commit(state.prompt_tokens_in(start, end), at_most=end - start)

    def propose(
        self, state: DecodeState, num_draft_tokens: int, sampling: SamplingConfig, generator: torch.Generator
    ) -> Proposal:
        hidden = self._read_on(state)  # [B, hidden_size]
        drafted: list[tuple[torch.Tensor, torch.Tensor]] = []
        for position in range(num_draft_tokens):
            if position > 0:
                hidden = self._forward(drafted[-1][0])[:, 0]
                self.cache.commit(1, at_most=1)
            probs = probabilities(_fit_vocabulary(self.draft.logits(hidden), state.vocab_size), sampling)
            drafted.append((choose(probs, sampling, generator)[:, None], probs))
        return _stack(drafted)

    def _read_on(self, state: DecodeState) -> torch.Tensor:  # [B, hidden_size], behind each row's last token
        """Read what the last step emitted, and perhaps some tokens again, which changes nothing.

        Two tokens are enough whatever was accepted, since the draft read all of its own proposal but the last.
        """
        count = 2 if self.alone else state.slack + 1
        start = (state.lengths - count).clamp(min=0)
        self.cache.set_lengths(start, max(state.max_length - count, 0))
        index = start[:, None] + torch.arange(count, device=start.device)
        hidden = self._forward(state.tokens.gather(1, index))
        self.cache.set_lengths(state.lengths, state.max_length)
        last = (state.lengths - 1 - start)[:, None, None]
        return hidden.gather(1, last.expand(-1, 1, hidden.shape[-1]))[:, 0]

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:  # [B, m] to [B, m, hidden_size]
        # A target that pads its vocabulary further may emit an id that the draft has no row for: any other will do.
        return self.draft.forward(tokens.clamp(max=self.draft.vocab_size - 1), self.cache).hidden


class HeadProposer(ModelProposer):
    """Drafts with a one-layer head that reads the target's hidden states (EAGLE, arXiv 2401.15077).

    The head's input at position t is the token t+1 together with the target's features of token t; while drafting
    on, its own output stands in for the features that the target has not computed yet. The CPU kernels draft all
    tokens in one call.
    """

    def __init__(self, draft: LanguageModel | DraftHead):
        if not isinstance(draft, DraftHead):
            raise ValueError(
                f"{type(draft).__name__} is no draft head: ModelProposer drafts with a pair's draft of any kind"
            )
        self.head = draft

    @property
    def capture_key(self) -> Hashable:
        return self.head

    def start(self, state: DecodeState) -> None:
        check_context(self.head, state.longest_prompt, state.max_new_tokens)
        self.cache: RaggedStaticCache = state.new_cache(self.head, "draft")

    def read_prompt(self, state: DecodeState, start: int, end: int, features: torch.Tensor) -> None:
        # The pair of the last prompt position waits for the first emitted token: `propose` reads it.
        self.head.forward(state.tokens[:, start + 1 : end + 1], self.head.fuse(features), self.cache)
        self.cache.commit(state.prompt_tokens_in(start, end), at_most=end - start)

    def propose(
        self, state: DecodeState, num_draft_tokens: int, sampling: SamplingConfig, generator: torch.Generator
    ) -> Proposal:
        if self.head.fused is not None and (sampling.top_k, sampling.top_p) == (0, 1):
            numbers = uniforms(state.tokens, num_draft_tokens, generator)  # [B, gamma]; greedy drafting looks at none
            text = state.tokens, state.lengths, state.num_emitted
            return self.head.fused.draft(*text, state.features, self.cache, sampling.temperature, numbers)
        width = state.features.shape[1]
        known = state.lengths - 1 - state.num_emitted  # pairs read before the last step
        index = known[:, None] + 1 + torch.arange(width, device=known.device)
        tokens = state.tokens.gather(1, index)
        self.cache.set_lengths(known, state.max_length - 1)
        hidden = self.head.forward(tokens, self.head.fuse(state.features), self.cache)
        self.cache.set_lengths(state.lengths - 1, state.max_length - 1)
        newest = (state.num_emitted - 1).clamp(min=0)[:, None, None]
        hidden = hidden.gather(1, newest.expand(-1, 1, hidden.shape[-1]))  # [B, 1, hidden_size]
        drafted: list[tuple[torch.Tensor, torch.Tensor]] = []
        for position in range(num_draft_tokens):
            if position > 0:
                hidden = self.head.forward(drafted[-1][0], hidden, self.cache)
                self.cache.commit(1, at_most=1)
            probs = probabilities(self.head.scores(hidden[:, 0]), sampling)  # [B, scored]
            token = self.head.scored_ids[choose(probs, sampling, generator)]
            drafted.append((token[:, None], probs))
        tokens, scored = _stack(drafted)
        everywhere = scored.new_zeros(*tokens.shape, self.head.vocab_size)
        return tokens, everywhere.index_copy_(2, self.head.scored_ids, scored)


class NgramProposer:
    """Drafts by copying what followed the last tokens where they stood before (prompt lookup; no second model).

    Args:
        longest, shortest: how many last tokens must match; longer matches are preferred, then more recent ones.
    """

    def __init__(self, longest: int = 3, shortest: int = 1):
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens: give 1 <= shortest <= longest")
        self.longest, self.shortest = longest, shortest

    @property
    def capture_key(self) -> Hashable:
        return self.longest, self.shortest

    def start(self, state: DecodeState) -> None:
        pass

    def read_prompt(self, state: DecodeState, start: int, end: int, features: torch.Tensor) -> None:
        pass

    def propose(
        self, state: DecodeState, num_draft_tokens: int, sampling: SamplingConfig, generator: torch.Generator
    ) -> Proposal:
        if state.reading_is_free and vocabulary.available(state.tokens.device, state.vocab_size):
            sizes = self.longest, self.shortest, num_draft_tokens, state.vocab_size
            return rows.lookup(state.tokens, state.lengths, *sizes)
        source = self._continuation(state)  # [B], where the copy begins; at the end of the row if nothing matched
        index = source[:, None] + torch.arange(num_draft_tokens, device=source.device)
        known = index < state.lengths[:, None]
        tokens = state.tokens.gather(1, index.clamp(max=state.capacity - 1))
        probs = torch.zeros(*tokens.shape, state.vocab_size, device=tokens.device)
        return tokens, probs.scatter_(2, tokens[:, :, None], known[:, :, None].float())

    def _continuation(self, state: DecodeState) -> torch.Tensor:  # [B]
        text = state.tokens[:, : state.max_length]
        source = state.lengths
        for size in range(self.shortest, min(self.longest, state.max_length - 1) + 1):
            suffix = text.gather(1, (state.lengths[:, None] + torch.arange(-size, 0, device=text.device)).clamp(min=0))
            windows = text.unfold(1, size, 1)  # [B, max_length-size+1, size]
            after = torch.arange(size, text.shape[1] + 1, device=text.device)  # [windows], first token behind each
            match = (windows == suffix[:, None]).all(dim=-1) & (after < state.lengths[:, None])
            latest = (after * match).max(dim=1).values
            source = torch.where(latest > 0, latest, source)
        return source


class CompositeProposer:
    """Copies where the text repeats itself and drafts everywhere else, row by row and step by step.

    Args:
        draft: proposes for the rows in which `lookup` finds nothing.
        lookup: by default it copies behind two tokens or more that stood before: a single one is mostly chance.
    """

    def __init__(self, draft: Proposer, lookup: NgramProposer | None = None):
        self.draft, self.lookup = draft, lookup or NgramProposer(longest=5, shortest=2)

    @property
    def capture_key(self) -> Hashable:
        keys = capture_key(self.draft), capture_key(self.lookup)
        return None if None in keys else keys

    def start(self, state: DecodeState) -> None:
        self.draft.start(state)
        if isinstance(self.draft, ModelProposer):
            self.draft.alone = False

    def read_prompt(self, state: DecodeState, start: int, end: int, features: torch.Tensor) -> None:
        self.draft.read_prompt(state, start, end, features)

    def propose(
        self, state: DecodeState, num_draft_tokens: int, sampling: SamplingConfig, generator: torch.Generator
    ) -> Proposal:
        copied, copied_probs = self.lookup.propose(state, num_draft_tokens, sampling, generator)
        found = copied_probs[:, 0].gather(1, copied[:, :1]) > 0  # [B, 1]
        # Where to look is no wait: if every row copies, the draft only reads on, which its cache needs.
        idle = state.reading_is_free and bool(found.all())
        drafted, drafted_probs = self.draft.propose(state, 1 if idle else num_draft_tokens, sampling, generator)
        if idle:
            return copied, copied_probs
        if state.reading_is_free and not found.any():
            return drafted, drafted_probs
        return torch.where(found, copied, drafted), torch.where(found[:, :, None], copied_probs, drafted_probs)


def make_proposer(method: str, pair: Pair) -> Proposer:
    """The proposer that the params call `method`: "draft" (the pair's own, of any kind), "ngram" or "composite"."""
    if method == "ngram":
        return NgramProposer()
    draft = ModelProposer(pair.draft)
    assert method in ("draft", "composite"), method
    return draft if method == "draft" else CompositeProposer(draft)


def _fit_vocabulary(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Cut or pad `[B, V_draft]` to `[B, V]`: models of one family pad the same vocabulary to different widths."""
    extra = vocab_size - logits.shape[-1]
    return torch.nn.functional.pad(logits, (0, extra), value=float("-inf")) if extra else logits


def _stack(drafted: list[tuple[torch.Tensor, torch.Tensor]]) -> Proposal:
    """gamma pairs of `[B, 1]` tokens and `[B, V]` distributions as one proposal."""
    return torch.cat([tokens for tokens, _ in drafted], dim=1), torch.stack([probs for _, probs in drafted], dim=1)
