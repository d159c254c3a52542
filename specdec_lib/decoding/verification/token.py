"""Verification: which draft tokens stay, and which token follows them.

Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), Algorithm 1. Glossary:

    accepted         draft token x, kept with probability min(1, target(x) / draft(x))
    resampled token  drawn from the residual after the first rejection
    bonus token      drawn from the target's last row after full acceptance
    residual         normalised max(target - draft, 0)
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from specdec_lib.decoding.sampling import RandomOps

RANDOM = RandomOps()


class Verification(NamedTuple):
    """What one verification decided for each row."""

    num_accepted: torch.Tensor  # [B], between 0 and the number of tokens drafted
    next_token: torch.Tensor  # [B], resampled or bonus


class Verify(Protocol):
    """A verification rule. One with state has a method `start(call)` too, which is called when a call begins.

    It uses numbers by slices of `uniforms`, not by copies: so the enumeration can tell which ones they are.
    """

    def __call__(
        self,
        target_probs: torch.Tensor,  # [B, gamma+1, V]
        draft_probs: torch.Tensor,  # [B, gamma, V]
        draft_tokens: torch.Tensor,  # [B, gamma]
        uniforms: torch.Tensor,  # [B, gamma+1]
        ops: RandomOps = RANDOM,
    ) -> Verification:
        """Decide for every row."""


def verify(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]; a row of zeros means: nothing was drafted here
    draft_tokens: torch.Tensor,  # [B, gamma], drawn from draft_probs
    uniforms: torch.Tensor,  # [B, gamma+1] in [0, 1), float64: float32 has only 2**24 of them
    ops: RandomOps = RANDOM,
) -> Verification:
    """Accept a prefix of the draft and draw the token after it, so that both follow the target's distribution."""
    target, draft = chance_of(draft_tokens, target_probs[:, :-1]), chance_of(draft_tokens, draft_probs)
    accepted = ops.accept(uniforms[:, :-1], target.double() / draft) & (draft > 0)  # r_i > p_i(x) / q_i(x) rejects
    num_accepted = accepted.long().cumprod(dim=1).sum(dim=1)  # n = min({i - 1 | r_i > p_i(x) / q_i(x)} and gamma)
    residual = residual_weights(target_probs, draft_probs, num_accepted)  # p'(x) before it is normalised
    return Verification(num_accepted, ops.invert(residual, uniforms[:, -1]))  # t ~ p'(x)


def chance_of(tokens: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:  # [B, m], [B, m, V] -> [B, m]
    """The probability of each token."""
    return probs.gather(2, tokens[:, :, None])[:, :, 0]


def residual_weights(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]
    num_accepted: torch.Tensor,  # [B]
) -> torch.Tensor:  # [B, V], not normalised
    """max(0, target - draft) at the first position that was not accepted.

    After full acceptance, and wherever nothing was drafted, there is no draft and the residual is the target.
    """
    row, gamma = torch.arange(len(num_accepted), device=num_accepted.device), draft_probs.shape[1]
    if gamma == 0:
        return target_probs[:, 0]
    target, draft = target_probs[row, num_accepted], draft_probs[row, num_accepted.clamp(max=gamma - 1)]
    residual = (target - draft * (num_accepted < gamma)[:, None]).clamp_(min=0)
    # Equal rows reject with probability 0; if rounding rejects all the same, there is no residual left to draw from.
    return torch.where(residual.any(dim=-1, keepdim=True), residual, target)


def residual_probs(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, num_accepted: torch.Tensor
) -> torch.Tensor:  # [B, V]
    """norm(max(0, target - draft)), the distribution of a resampled token; arguments as of `residual_weights`."""
    residual = residual_weights(target_probs, draft_probs, num_accepted)
    return residual / residual.sum(dim=-1, keepdim=True)
