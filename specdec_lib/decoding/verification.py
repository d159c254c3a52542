"""Verification: which draft tokens stay, and which token follows them.

Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), Algorithm 1. Glossary:

    accepted         draft token x, kept with probability min(1, target(x) / draft(x))
    resampled token  drawn from the residual after the first rejection
    bonus token      drawn from the target's last row after full acceptance
    residual         normalised max(target - draft, 0)
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from specdec_lib.decoding.sampling import draw
from specdec_lib.decoding.streams import uniforms
from specdec_lib.kernels import vocabulary


class Verification(NamedTuple):
    """What one verification decided for each row."""

    num_accepted: torch.Tensor  # [B], between 0 and the number of tokens drafted
    next_token: torch.Tensor  # [B], resampled or bonus


def verify(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]; a row of zeros means: nothing was drafted here
    draft_tokens: torch.Tensor,  # [B, gamma], drawn from draft_probs
    generator: torch.Generator,
) -> Verification:
    """Accept a prefix of the draft and draw the token after it, so that both follow the target's distribution."""
    tests = uniforms(draft_tokens, draft_tokens.shape[1], generator)
    if vocabulary.serves(target_probs, draft_probs):  # the CPU kernels do in one call what stands below
        numbers = uniforms(draft_tokens, 1, generator)[:, 0]
        return Verification(*vocabulary.verify(target_probs, draft_probs, draft_tokens, tests, numbers))
    num_accepted = count_accepted(target_probs, draft_probs, draft_tokens, tests)
    return Verification(num_accepted, draw(residual_probs(target_probs, draft_probs, num_accepted), generator))


def count_accepted(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]
    draft_tokens: torch.Tensor,  # [B, gamma]
    uniforms: torch.Tensor,  # [B, gamma], in [0, 1), float64: float32 has only 2**24 of them
) -> torch.Tensor:  # [B]
    """Length of the accepted prefix: token x stays if u < target(x) / draft(x), up to the first that does not."""
    token = draft_tokens[:, :, None]
    target = target_probs[:, :-1].gather(2, token)[:, :, 0]  # [B, gamma]
    draft = draft_probs.gather(2, token)[:, :, 0]  # [B, gamma]
    accepted = (uniforms < target.double() / draft) & (draft > 0)  # Algorithm 1: r_i > p_i(x) / q_i(x) rejects
    return accepted.long().cumprod(dim=1).sum(dim=1)


def residual_probs(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]
    num_accepted: torch.Tensor,  # [B]
) -> torch.Tensor:  # [B, V]
    """norm(max(0, target - draft)) at the first position not accepted; there is no draft behind the last one.

    Behind full acceptance, and wherever nothing was drafted, the draft row is zero and the residual is the target.
    """
    row, gamma = torch.arange(len(num_accepted), device=num_accepted.device), draft_probs.shape[1]
    target = target_probs[row, num_accepted]
    drafted = (num_accepted < gamma)[:, None]  # else the row behind the draft, which is zero
    residual = torch.addcmul(target, draft_probs[row, num_accepted.clamp(max=gamma - 1)], drafted, value=-1).clamp_(
        min=0
    )
    mass = residual.sum(dim=-1, keepdim=True)
    # Equal rows reject with probability 0; if rounding rejects all the same, there is no residual left to draw from.
    return torch.where(mass > 0, residual / mass, target)
