"""The small operations of a step with the C++ kernels: a pass or two over a vocabulary instead of a dozen.

`specdec_lib.decoding.ops` has the same operations in plain PyTorch, and chooses between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdec_lib.kernels.build import why_no_kernels


def available() -> bool:
    """Whether this machine has the kernels; compiles them at the first call."""
    return why_no_kernels() is None


def probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(logits / temperature) of `[..., V]` in float32, a one-hot of the largest at temperature 0."""
    return torch.ops.specdec_lib.probabilities(logits.float().contiguous(), temperature)


def draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token from each of `weights` `[..., V]` float32 by inversion of `uniforms` `[...]` float64, int64 `[...]`."""
    return torch.ops.specdec_lib.draw(weights.contiguous(), uniforms.contiguous())


def verify(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `decoding.verification.verify` does with the same tensors."""
    return torch.ops.specdec_lib.verify(*(tensor.contiguous() for tensor in tensors))


def verify_block(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `decoding.verification.block.verify_block` does with the same tensors."""
    return torch.ops.specdec_lib.verify_block(*(tensor.contiguous() for tensor in tensors))


def append(rows: Sequence[torch.Tensor], *step: torch.Tensor) -> None:
    """What `decoding.ops.PlainOps.append` does, in place.

    Args:
        rows: `tokens, lengths, ends, done, stop_token_ids, saw_nan, num_emitted, num_tested, counts, report` of rows
            and counters.
        step: `draft_tokens, draft_probs, target_probs, num_accepted, next_token`.
    """
    *tensors, num_accepted, next_token = step
    step = *tensors, num_accepted.long(), next_token
    torch.ops.specdec_lib.append(*rows, *(tensor.contiguous() for tensor in step))


def lookup(
    tokens: torch.Tensor,  # [B, capacity]
    lengths: torch.Tensor,  # [B]
    *sizes: int,  # the longest and the shortest key, gamma and V
) -> tuple[torch.Tensor, torch.Tensor]:  # [B, gamma], [B, gamma, V]
    """What followed the last tokens of each row where they stood before, and one-hots of it."""
    return torch.ops.specdec_lib.lookup(tokens, lengths, *sizes)
