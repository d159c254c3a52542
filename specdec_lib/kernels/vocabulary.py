"""Drawing from distributions over whole vocabularies with the C++ kernels: a pass or two instead of a dozen."""

from __future__ import annotations

import torch

from specdec_lib.kernels.build import why_no_kernels

SMALLEST = 1024  # tokens: below, PyTorch's passes cost nothing


def serves(*weights: torch.Tensor) -> bool:
    """Whether the kernels can draw from `weights` `[..., V]`."""
    return weights[0].shape[-1] >= SMALLEST and not (
        any(w.dtype != torch.float32 or w.device.type != "cpu" for w in weights) or why_no_kernels()
    )


def draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token from each of `weights` `[..., V]` float32 by inversion of `uniforms` `[...]` float64, int64 `[...]`."""
    rows = weights.reshape(-1, weights.shape[-1]).contiguous()
    return torch.ops.specdec_lib.draw(rows, uniforms.reshape(-1).contiguous()).view(uniforms.shape)


def draw_residual(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]
    num_accepted: torch.Tensor,  # [B]
    uniforms: torch.Tensor,  # [B]
) -> torch.Tensor:  # [B]
    """The same from max(target - draft, 0) at position `num_accepted`, or the target's row behind the draft."""
    return torch.ops.specdec_lib.draw_residual(
        target_probs.contiguous(), draft_probs.contiguous(), num_accepted.contiguous(), uniforms.contiguous()
    )
