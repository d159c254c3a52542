"""Drafts with the target's own first layers: self-speculation, without a second model (LayerSkip, arXiv 2404.16710).

The draft writes its keys and values where the target's pass will write the very same ones. So it has no cache of its
own, reads no prompt, and finds all tokens but the last one read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.model import ModelDrafting
from specdec_lib.decoding.proposers.proposer import Drafting, Proposer
from specdec_lib.decoding.rows import Rows
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.early_exit import early_exit
from specdec_lib.models.runner import LanguageModel


@dataclass(frozen=True)
class EarlyExitProposer(Proposer):
    """Drafts with the first layers of the target, its last norm and its output layer.

    Args:
        num_layers: how many; fewer than the target has, else the call raises ValueError.
    """

    num_layers: int

    @property
    def capturable(self) -> bool:
        return True

    def start(self, call: Call) -> Drafting:
        return EarlyExitDrafting(early_exit(call.target, self.num_layers), call)


class EarlyExitDrafting(ModelDrafting):
    """One call's drafting in the target's cache."""

    def __init__(self, draft: LanguageModel, call: Call):
        self.draft, self.call, self.ops, self.length = draft, call, call.ops, call.length
        self.vocab_size = draft.vocab_size

    def expect_other_drafts(self) -> None:
        """The target has read whatever was verified."""

    def read_prompt(self, rows: Rows, start: int, end: int, features: torch.Tensor) -> None:
        """The target has read it."""

    def _read_new_tokens(self, rows: Rows) -> torch.Tensor:  # [B, hidden_size], at each row's last token
        assert isinstance(self.call.cache, RaggedStaticCache), "the target reads the prompts before anything is drafted"
        self.cache = self.call.cache.of_first_layers(self.draft.model.config.num_hidden_layers)
        self.cache.set_lengths(rows.lengths - 1, rows.max_length - 1)
        hidden = self._forward(rows.last_token())
        self.cache.commit(1, at_most=1)
        return hidden[:, 0]
