"""Bugs in the choice between two chains of draft tokens; see `mutants`."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_lib.decoding.sampling import RandomOps
from specdec_lib.decoding.verification import RANDOM
from specdec_lib.decoding.verification.two_chains import Chain, choose_chain


def second_against_the_target(
    target_probs: Tensor, draft_probs: Tensor, draft_tokens: Tensor, uniforms: Tensor, ops: RandomOps = RANDOM
) -> Chain:
    """The second candidate is tested against the target itself, as if none had been rejected before it."""
    chain = choose_chain(target_probs, draft_probs, draft_tokens, uniforms, ops)
    first = torch.where(chain.second[:, None], target_probs[:, 0], chain.target_probs[:, 0])
    return chain._replace(target_probs=torch.cat([first[:, None], chain.target_probs[:, 1:]], dim=1))


def second_as_if_replaced(
    target_probs: Tensor, draft_probs: Tensor, draft_tokens: Tensor, uniforms: Tensor, ops: RandomOps = RANDOM
) -> Chain:
    """The second candidate, which differs from the first, is tested as a draw from the whole draft."""
    gamma = draft_tokens.shape[1] // 2
    reported = torch.cat([draft_probs[:, :gamma], draft_probs[:, :1], draft_probs[:, gamma + 1 :]], dim=1)
    return choose_chain(target_probs, reported, draft_tokens, uniforms, ops)
