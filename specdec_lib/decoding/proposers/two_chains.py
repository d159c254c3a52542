"""Drafts two candidates for the first position, different ones, and a chain of draft tokens after each.

Tokens and distributions are those of the first chain, then those of the second. Both chains are drafted together, in
passes over one token of each. The later tokens of the two share their random numbers, as one chain at most is emitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.proposers.head import HeadDrafting
from specdec_lib.decoding.proposers.model import ModelDrafting, ModelProposer
from specdec_lib.decoding.proposers.proposer import Drafting, Proposal
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.verification.two_chains import ChooseChain, choose_chain
from specdec_lib.models.cache import Fork, RaggedStaticCache
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.runner import LanguageModel

NEVER = -1e30  # a logit whose token is not drawn while another is possible


@dataclass(frozen=True)
class TwoChainsProposer(ModelProposer):
    """Drafts with a pair's draft, of either kind, two chains of gamma tokens.

    Args:
        choose_chain: which chain is verified; the mutants of `exactness` have others.

    Raises:
        ValueError: when a call starts: the engine of target or draft cannot hide one chain from the other, the draft
            spells its tokens in another vocabulary or proposes all at once, or its length adapts.
    """

    choose_chain: ChooseChain = field(default=choose_chain)
    chains = 2

    def start(self, call: Call) -> Drafting:
        for model in (call.target, self.draft):
            engine = "kernels" if getattr(model, "fused", None) else getattr(model, "engine", "eager")
            if engine not in ("eager", "inductor"):
                raise ValueError(
                    f"two chains need a mask, which {model.name}, read by the engine {engine}, has not: choose the "
                    "method draft, or on a CPU load the pair with compiled=False"
                )
        if not call.length.capturable:
            raise ValueError("two chains have always gamma tokens each: choose the draft length fixed or batch")
        usual = super().start(call)
        if type(usual) not in (ModelDrafting, HeadDrafting):
            raise ValueError(
                "two chains need a draft that proposes the target's tokens one after another: choose the method draft"
            )
        drafting = HeadChains(self.draft, call) if isinstance(self.draft, DraftHead) else ModelChains(self.draft, call)
        drafting.choose_chain = self.choose_chain
        return drafting


class Chains(Drafting):
    """One call's drafting of two chains; how a draft reads and scores is its own.

    Attributes:
        choose_chain: the proposer's.
    """

    cache: RaggedStaticCache
    ops: PlainOps
    choose_chain: ChooseChain

    def read(self, rows: Rows) -> torch.Tensor:  # [B, 1, H], at each row's last token
        """Read what the last step emitted."""
        raise NotImplementedError

    def advance(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:  # [B, 2], [B, 2, H] -> [B, 2, H]
        """Read a token of each chain; `hidden` are the states that they were drawn from."""
        raise NotImplementedError

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:  # [B, n, H] -> [B, n, S]
        """The logits of the tokens that the draft scores."""
        raise NotImplementedError

    def ids(self, scored: torch.Tensor) -> torch.Tensor:
        """The target's tokens of indices among those that the draft scores."""
        return scored

    def in_vocabulary(self, probs: torch.Tensor) -> torch.Tensor:  # [B, m, S] -> [B, m, V]
        """Distributions over the tokens that the draft scores as those over the target's vocabulary."""
        return probs

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        ops, hidden = self.ops, self.read(rows)
        logits = self.scores(hidden)[:, 0]
        logits = logits if logits.dtype == torch.float64 else logits.float()  # [B, S]
        probs = ops.probabilities(logits)
        first = ops.choose(probs, uniforms[:, 0])  # [B]
        other_probs = ops.probabilities(logits.scatter(1, first[:, None], NEVER))  # without replacement
        second = ops.choose(other_probs, uniforms[:, num_draft_tokens])
        tokens, laws = [torch.stack([first, second], dim=1)], [torch.stack([probs, other_probs], dim=1)]
        hidden = hidden.expand(-1, 2, -1)
        with self.cache.forked(Fork(rows.lengths, num_draft_tokens, apart=num_draft_tokens)):
            for position in range(1, num_draft_tokens):
                hidden = self.advance(self.ids(tokens[-1]), hidden)
                self.cache.commit(1, at_most=1)
                laws.append(ops.probabilities(self.scores(hidden)))  # [B, 2, S]
                drawn = [ops.choose(laws[-1][:, chain], uniforms[:, position]) for chain in (0, 1)]
                tokens.append(torch.stack(drawn, dim=1))
        both = torch.stack(tokens, dim=2).flatten(1), torch.stack(laws, dim=2).flatten(1, 2)
        return self.ids(both[0]), self.in_vocabulary(both[1])


class ModelChains(Chains, ModelDrafting):
    """With a language model."""

    def __init__(self, draft: LanguageModel, call: Call):
        ModelDrafting.__init__(self, draft, call)
        self.expect_other_drafts()  # what it has read of the second chain is not where it will be read again

    def read(self, rows: Rows) -> torch.Tensor:
        return self._read_new_tokens(rows)[:, None]

    def advance(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self._forward(tokens)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._target_logits(hidden)


class HeadChains(Chains, HeadDrafting):
    """With a draft head."""

    def read(self, rows: Rows) -> torch.Tensor:
        return self._read_verified(rows)

    def advance(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.head.forward(tokens, hidden, self.cache)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head.scores(hidden)

    def ids(self, scored: torch.Tensor) -> torch.Tensor:
        return self.head.scored_ids[scored]

    def in_vocabulary(self, probs: torch.Tensor) -> torch.Tensor:
        everywhere = probs.new_zeros(*probs.shape[:2], self.head.vocab_size)
        return everywhere.index_copy_(2, self.head.scored_ids, probs)
