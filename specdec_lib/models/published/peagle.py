"""P-EAGLE (arXiv 2602.01469): an EAGLE-3 head that drafts all positions in one pass.

Drafted positions read a mask token and a learned state in the place of what the target has not computed.
"""

from __future__ import annotations

import torch
from torch import nn

from specdec_lib.models.published.config import PublishedConfig
from specdec_lib.models.published.eagle3 import Eagle3Head


class PEagleHead(Eagle3Head):
    """The head in plain PyTorch."""

    parallel = True

    def __init__(self, config: PublishedConfig):
        super().__init__(config)
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, self.fc.in_features))

    @torch.inference_mode()
    def masked(self, batch_size: int, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.scored_ids.new_full((batch_size, num_tokens), self.config.mask_token_id)
        return tokens, self.fuse(self.mask_hidden).expand(batch_size, num_tokens, -1)
