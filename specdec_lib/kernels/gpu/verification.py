"""Triton kernels of token verification: Leviathan et al. 2022 (arXiv 2211.17192), Algorithm 1.

Each program finds for itself how many tokens its row accepts: that takes gamma pairs of numbers, and no kernel more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from specdec_lib.kernels.gpu.sampling import BLOCK, block_and_rest, passed_first


@triton.jit
def count_accepted(
    target: tl.tensor,  # [B, gamma+1, V]
    draft: tl.tensor,  # [B, gamma, V]
    tokens: tl.tensor,  # [B, gamma]
    uniforms: tl.tensor,  # [B, gamma+1] float64, of any strides
    row: tl.tensor,
    row_stride: tl.tensor,
    stride: tl.tensor,
    vocab_size: tl.tensor,
    GAMMA: tl.constexpr,
) -> tl.tensor:
    """How many draft tokens of a row stay."""
    accepted, count = row >= 0, tl.zeros([], tl.int32)
    for position in tl.static_range(GAMMA):
        token = tl.load(tokens + row * GAMMA + position)
        p = tl.load(target + (row * (GAMMA + 1) + position) * vocab_size + token).to(tl.float64)
        q = tl.load(draft + (row * GAMMA + position) * vocab_size + token).to(tl.float64)
        uniform = tl.load(uniforms + row * row_stride + position * stride)
        accepted = accepted & (q > 0) & (uniform < p / tl.where(q > 0, q, 1.0))
        count += accepted.to(tl.int32)
    return count


@triton.jit
def residual_weights(
    target: tl.tensor,
    draft: tl.tensor,
    row: tl.tensor,
    position: tl.tensor,
    token: tl.tensor,
    vocab_size: tl.tensor,
    GAMMA: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """max(target - draft, 0) of some tokens, and the target there; at the last position there is no draft."""
    inside = token < vocab_size
    p = tl.load(target + (row * (GAMMA + 1) + position) * vocab_size + token, mask=inside, other=0.0)
    q = tl.load(draft + (row * GAMMA + position) * vocab_size + token, mask=inside & (position < GAMMA), other=0.0)
    return tl.maximum(p - q, 0.0), p


@triton.jit
def residual_masses(
    target: tl.tensor,  # and the next six as of `count_accepted`
    draft: tl.tensor,
    tokens: tl.tensor,
    uniforms: tl.tensor,
    row_stride: tl.tensor,
    stride: tl.tensor,
    vocab_size: tl.tensor,
    num_accepted: tl.tensor,  # [B] int64, out
    masses: tl.tensor,  # [2, B, blocks] float64, out: of the residual, and of the target there
    GAMMA: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The sums of each block of the residual and of the target at the first position that was not accepted."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = count_accepted(target, draft, tokens, uniforms, row, row_stride, stride, vocab_size, GAMMA)
    token = block * BLOCK + tl.arange(0, BLOCK)
    residual, law = residual_weights(target, draft, row, position, token, vocab_size, GAMMA)
    place = masses + row * tl.num_programs(1) + block
    tl.store(place, tl.sum(residual.to(tl.float64)))
    tl.store(place + tl.num_programs(0).to(tl.int64) * tl.num_programs(1), tl.sum(law.to(tl.float64)))
    if block == 0:
        tl.store(num_accepted + row, position.to(tl.int64))


@triton.jit
def next_tokens(
    target: tl.tensor,
    draft: tl.tensor,
    uniforms: tl.tensor,  # [B], of the last draws, `row_stride` apart
    row_stride: tl.tensor,
    vocab_size: tl.tensor,
    num_accepted: tl.tensor,  # [B] int64
    masses: tl.tensor,  # [2, B, blocks] float64
    blocks: tl.tensor,
    next_token: tl.tensor,  # [B] int64, out
    GAMMA: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Draw the token after those accepted from the residual; if rounding left nothing of it, from the target."""
    row, index = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    place, behind = masses + row * blocks + index, tl.num_programs(0).to(tl.int64) * blocks
    left = tl.load(place, mask=index < blocks, other=0.0)
    law = tl.load(place + behind, mask=index < blocks, other=0.0)
    any_left = tl.sum(left) > 0
    mass = tl.where(any_left, left, law)
    block, rest = block_and_rest(mass, tl.load(uniforms + row * row_stride))
    token = block * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(num_accepted + row)
    residual, p = residual_weights(target, draft, row, position, token, vocab_size, GAMMA)
    weight = tl.where(any_left, residual, p).to(tl.float64)
    found = passed_first(tl.cumsum(weight), weight, token, rest)
    tl.store(next_token + row, tl.where(tl.sum(mass) > 0, found, vocab_size - 1).to(tl.int64))


def verify(
    target_probs: torch.Tensor,  # [B, gamma+1, V]
    draft_probs: torch.Tensor,  # [B, gamma, V]
    draft_tokens: torch.Tensor,  # [B, gamma]
    uniforms: torch.Tensor,  # [B, gamma+1]
) -> tuple[torch.Tensor, torch.Tensor]:  # [B], [B]
    """What `decoding.verification.verify` does with the same tensors."""
    target, draft, tokens = target_probs.contiguous(), draft_probs.contiguous(), draft_tokens.contiguous()
    (batch, gamma), vocab_size, device = tokens.shape, target.shape[-1], target.device
    num_accepted, next_token = (torch.empty(batch, dtype=torch.int64, device=device) for _ in range(2))
    blocks = triton.cdiv(vocab_size, BLOCK)
    masses = torch.empty(2, batch, blocks, dtype=torch.float64, device=device)
    given = target, draft, tokens, uniforms, *uniforms.stride(), vocab_size
    residual_masses[batch, blocks](*given, num_accepted, masses, gamma, BLOCK)
    last = uniforms[:, -1]
    given = target, draft, last, last.stride(0), vocab_size
    size = triton.next_power_of_2(blocks)
    next_tokens[batch,](*given, num_accepted, masses, blocks, next_token, gamma, BLOCK, size)
    return num_accepted, next_token
