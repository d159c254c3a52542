"""Block verification: the draft is accepted or rejected as a whole, so that more of it stays.

Sun, Mendlovic, Leviathan, Aharoni, Ro, Beirami, Suresh 2024 (arXiv 2403.10444), Algorithm 2. Same arguments and same
law as `verification.verify`; no rule accepts more tokens in expectation with one draft. Where token verification
multiplies chances that were each cut at 1, this rule cuts their product:

    joint      p_i = min(1, p_(i-1) target(x_i) / draft(x_i)), with p_0 = 1
    remainder  max(p_i target - draft, 0) at the position after x_i; the draft is 0 where nothing was drafted
    kept       x_1 .. x_i with the largest i whose test passes, and then a token from the remainder there
"""

from __future__ import annotations

import torch

from specdec_lib.decoding.sampling import RandomOps
from specdec_lib.decoding.verification import RANDOM, Verification, chance_of


def verify_block(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]; a row of zeros means: nothing was drafted here
    draft_tokens: torch.Tensor,  # [B, gamma], drawn from draft_probs
    uniforms: torch.Tensor,  # [B, gamma+1] in [0, 1), float64
    ops: RandomOps = RANDOM,
) -> Verification:
    """Accept the longest prefix of the draft whose test passes and draw the token after it."""
    joint = joint_chances(target_probs, draft_probs, draft_tokens)  # [B, gamma+1]
    remainder = remainders(target_probs, draft_probs, joint)  # [B, gamma+1, V]
    passed = ops.accept(uniforms[:, :-1], keep_chances(remainder, joint)[:, 1:])  # eta_i <= h_i
    places = torch.arange(1, passed.shape[1] + 1, device=passed.device)
    num_accepted = torch.nn.functional.pad(passed * places, (1, 0)).amax(dim=1)  # tau, the last i that passes, or 0
    row = torch.arange(len(num_accepted), device=num_accepted.device)
    left, target = remainder[row, num_accepted], target_probs[row, num_accepted]
    # A remainder of nothing is left with probability 0; if rounding leaves it all the same, the target's law stands in.
    weights = torch.where(left.any(dim=-1, keepdim=True), left, target.to(left.dtype))
    return Verification(num_accepted, ops.invert(weights, uniforms[:, -1]))


def joint_chances(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor
) -> torch.Tensor:  # [B, gamma+1], float64
    """p_0 .. p_gamma; 0 from the first position on where nothing was drafted."""
    target, draft = chance_of(draft_tokens, target_probs[:, :-1]), chance_of(draft_tokens, draft_probs)
    ratio = torch.where(draft > 0, target.double() / draft, 0.0)
    chances = [torch.ones(len(ratio), dtype=ratio.dtype, device=ratio.device)]
    for position in range(ratio.shape[1]):
        chances.append((chances[-1] * ratio[:, position]).clamp(max=1))
    return torch.stack(chances, dim=1)


def remainders(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, joint: torch.Tensor
) -> torch.Tensor:  # [B, gamma+1, V], not normalised
    """max(p_i target - draft, 0) at the position after each prefix; no draft follows the last."""
    after = torch.nn.functional.pad(draft_probs, (0, 0, 0, 1))
    return (joint[:, :, None] * target_probs - after).clamp_(min=0)


def keep_chances(remainder: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:  # [B, gamma+1]
    """h_i = S / (S + 1 - p_i) with the remainder's sum S. Where that is 0 / 0, a longer prefix passes for sure."""
    total = remainder.sum(dim=-1)
    either = total + 1 - joint
    return torch.where(either > 0, total / either, 1.0)
