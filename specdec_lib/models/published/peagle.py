"""P-EAGLE (arXiv 2602.01469): an EAGLE-3 head that drafts all positions in one pass.

Drafted positions read a mask token and a learned state in the place of what the target has not computed.
"""

from __future__ import annotations

import torch
from torch import nn

from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.published.config import PublishedConfig
from specdec_lib.models.published.eagle3 import Eagle3Head


class PEagleHead(Eagle3Head):
    """The head in plain PyTorch."""

    parallel = True

    def __init__(self, config: PublishedConfig):
        super().__init__(config)
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, self.fc.in_features))

    @torch.inference_mode()
    def in_one_pass(
        self, hidden: torch.Tensor, last_token: torch.Tensor, num_tokens: int, cache: RaggedStaticCache
    ) -> torch.Tensor:
        if num_tokens == 1:
            return hidden
        masked = last_token.new_full((len(last_token), num_tokens - 1), self.config.mask_token_id)
        states = self.fuse(self.mask_hidden).expand(*masked.shape, -1)
        return torch.cat([hidden, self.forward(masked, states, cache)], dim=1)
