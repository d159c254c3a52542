"""What is done with the rows in flight between passes, with the C++ kernels: one call instead of dozens of operators.

They are used where `vocabulary.available` says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def lookup(
    tokens: torch.Tensor,  # [B, capacity]
    lengths: torch.Tensor,  # [B]
    longest: int,
    shortest: int,
    num_draft_tokens: int,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # [B, gamma], [B, gamma, V]
    """What followed the last `longest` to `shortest` tokens where they stood before, and one-hots of it."""
    return torch.ops.specdec_lib.lookup(tokens, lengths, longest, shortest, num_draft_tokens, vocab_size)


def commit(
    rows: Sequence[torch.Tensor],  # those of a `DecodeState`, changed in place
    draft_tokens: torch.Tensor,  # [B, gamma]
    chances: torch.Tensor,  # [B, gamma]
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    num_accepted: torch.Tensor,  # [B]
    next_token: torch.Tensor,  # [B]
) -> None:
    """`DecodeState.commit` on `tokens, lengths, ends, done, stops, broken, num_emitted, counts, report`."""
    step = draft_tokens, chances, target_probs, num_accepted.long(), next_token
    torch.ops.specdec_lib.commit(*rows, *(tensor.contiguous() for tensor in step))
