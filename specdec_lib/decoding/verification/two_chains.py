"""Two candidates for the first position: which of two chains is verified, and against what its first token.

Recursive rejection without replacement (SpecInfer: Miao et al. 2023, arXiv 2305.09781), for two candidates:

    first candidate x   kept with probability min(1, target(x) / draft(x)), as any draft token
    after a rejection   the next token must follow the residual, max(target - draft, 0), normalised
    second candidate    a draft token for that target, drawn from the draft without x

What is left is an ordinary verification of one chain, by whatever rule: of the first chain, whose first token is
certain by now, or of the second, whose first token has the residual for its target.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from specdec_lib.decoding.sampling import RandomOps
from specdec_lib.decoding.verification import RANDOM, chance_of, residual_probs


class Chain(NamedTuple):
    """The chain that each row verifies, with its laws as a rule of verification takes them."""

    second: torch.Tensor  # [B] bool, whether it is the second one
    target_probs: torch.Tensor  # [B, gamma+1, V]
    draft_probs: torch.Tensor  # [B, gamma, V]
    tokens: torch.Tensor  # [B, gamma]


class ChooseChain(Protocol):
    """What `choose_chain` does."""

    def __call__(
        self,
        target_probs: torch.Tensor,
        draft_probs: torch.Tensor,
        draft_tokens: torch.Tensor,
        uniforms: torch.Tensor,
        ops: RandomOps = RANDOM,
    ) -> Chain:
        """Decide for every row."""


def choose_chain(
    target_probs: torch.Tensor,  # [B, 2 gamma + 1, V]: before the chains, after each token of the first, of the second
    draft_probs: torch.Tensor,  # [B, 2 gamma, V]: of the first chain, then of the second
    draft_tokens: torch.Tensor,  # [B, 2 gamma]
    uniforms: torch.Tensor,  # [B, 1] in [0, 1), float64
    ops: RandomOps = RANDOM,
) -> Chain:
    """Test the first candidate, and take its chain or the other one."""
    gamma = draft_tokens.shape[1] // 2
    before, first, drafted = target_probs[:, :1], draft_tokens[:, :1], draft_probs[:, :1]
    target, draft = chance_of(first, before), chance_of(first, drafted)
    kept = ops.accept(uniforms, target.double() / draft) & (draft > 0)  # [B, 1]
    certain = torch.zeros_like(before).scatter_(2, first[:, :, None], 1.0)
    residual = residual_probs(target_probs[:, : gamma + 1], draft_probs[:, :gamma], torch.zeros_like(first[:, 0]))
    choice = kept[:, :, None]
    return Chain(
        second=~kept[:, 0],
        target_probs=torch.cat(
            [
                torch.where(choice, certain, residual[:, None]),
                torch.where(choice, target_probs[:, 1 : gamma + 1], target_probs[:, gamma + 1 :]),
            ],
            dim=1,
        ),
        draft_probs=torch.cat(
            [
                torch.where(choice, certain.to(draft_probs.dtype), draft_probs[:, gamma : gamma + 1]),
                torch.where(choice, draft_probs[:, 1:gamma], draft_probs[:, gamma + 1 :]),
            ],
            dim=1,
        ),
        tokens=torch.where(kept, draft_tokens[:, :gamma], draft_tokens[:, gamma:]),
    )
