"""Triton kernels: logits to probabilities, and a token drawn from a row by inversion.

A row of 150,000 tokens is cut into blocks of `BLOCK`. One program takes one block, and a second kernel joins what the
blocks of a row found, always in the same order. So a row's result depends on nothing but the row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048  # tokens


@triton.jit
def in_precision(number: tl.float64, dtype: tl.constexpr) -> tl.tensor:
    """A number of the host, which the interpreter leaves a Python float, as a tensor."""
    return (number + tl.zeros([], tl.float64)).to(dtype)


@triton.jit
def block_peaks(
    logits: tl.tensor,  # [N, V], rows `stride` apart
    stride: tl.tensor,
    vocab_size: tl.tensor,
    temperature: tl.float64,
    maxima: tl.tensor,  # [N, blocks], out: the largest logit of each block
    sums: tl.tensor,  # [N, blocks], out: the sum of exp((logit - largest) / temperature); NaN if a logit is
    tokens: tl.tensor,  # [N, blocks] int32, out: the first token with the largest logit
    GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """What each block contributes to the softmax of its row."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + token, mask=token < vocab_size, other=float("-inf"))
    x = x.to(maxima.dtype.element_ty)
    known = tl.where(x == x, x, float("-inf"))  # all but NaN
    largest = tl.max(known)
    if GREEDY:
        weights = x - x  # 0; NaN of what is not finite
        weights = tl.where(x == float("-inf"), 0.0, weights)
        first = tl.min(tl.where(known == largest, token, vocab_size))
        tl.store(tokens + row * tl.num_programs(1) + block, first)
    else:
        finite = tl.where(largest == float("-inf"), 0.0, largest)
        weights = tl.exp((x - finite) / in_precision(temperature, x.dtype))
    tl.store(maxima + row * tl.num_programs(1) + block, largest)
    tl.store(sums + row * tl.num_programs(1) + block, tl.sum(weights))


@triton.jit
def normalised(
    logits: tl.tensor,  # and the next eight as of `block_peaks`
    stride: tl.tensor,
    vocab_size: tl.tensor,
    temperature: tl.float64,
    maxima: tl.tensor,
    sums: tl.tensor,
    tokens: tl.tensor,
    probs: tl.tensor,  # [N, V], out
    GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,  # a power of two, no less than the blocks of a row
) -> None:
    """Join the blocks of a row, and write the probabilities of one block."""
    row, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    token, other = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCKS)
    peaks = tl.load(maxima + row * blocks + other, mask=other < blocks, other=float("-inf"))
    parts = tl.load(sums + row * blocks + other, mask=other < blocks, other=0.0)
    largest = tl.max(peaks)
    if GREEDY:
        firsts = tl.load(tokens + row * blocks + other, mask=other < blocks, other=vocab_size)
        best = tl.min(tl.where(peaks == largest, firsts, vocab_size))
        p = (largest - largest) + tl.sum(parts) + (token == best).to(largest.dtype)  # NaN if there is no best
    else:
        x = tl.load(logits + row * stride + token, mask=token < vocab_size, other=0.0).to(largest.dtype)
        warmth = in_precision(temperature, largest.dtype)
        p = tl.exp((x - largest) / warmth) / tl.sum(parts * tl.exp((peaks - largest) / warmth))
    tl.store(probs + row * vocab_size + token, p, mask=token < vocab_size)


@triton.jit
def block_masses(
    weights: tl.tensor,  # [N, V]
    vocab_size: tl.tensor,
    masses: tl.tensor,  # [N, blocks] float64, out
    BLOCK: tl.constexpr,
) -> None:
    """The sum of each block."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weights + row * vocab_size + token, mask=token < vocab_size, other=0.0)
    tl.store(masses + row * tl.num_programs(1) + block, tl.sum(weight.to(tl.float64)))


@triton.jit
def passed_first(upto: tl.tensor, weights: tl.tensor, index: tl.tensor, point: tl.tensor) -> tl.tensor:
    """The first `index` at which the cumulative `upto` passes `point`, else the last one; never one of weight 0."""
    beyond = index.shape[0] + tl.max(index)
    first = tl.min(tl.where((upto > point) & (weights > 0), index, beyond))
    return tl.minimum(first, tl.max(tl.where(weights > 0, index, 0)))


@triton.jit
def block_and_rest(masses: tl.tensor, uniform: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The block in which the cumulative distribution passes `uniform`, and how far into it."""
    total, index = tl.sum(masses), tl.arange(0, masses.shape[0])
    below = (total.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)
    point = tl.minimum(uniform * total, below)
    block = passed_first(tl.cumsum(masses), masses, index, point)
    return block, point - tl.sum(tl.where(index < block, masses, 0.0))


@triton.jit
def drawn(
    weights: tl.tensor,  # [N, V]
    vocab_size: tl.tensor,
    masses: tl.tensor,  # [N, blocks] float64
    blocks: tl.tensor,
    uniforms: tl.tensor,  # [N] float64, `stride` apart
    stride: tl.tensor,
    chosen: tl.tensor,  # [N] int64, out
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """The token of each row; of a row of zeros the last one."""
    row, index = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    mass = tl.load(masses + row * blocks + index, mask=index < blocks, other=0.0)
    block, rest = block_and_rest(mass, tl.load(uniforms + row * stride))
    token = block * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weights + row * vocab_size + token, mask=token < vocab_size, other=0.0).to(tl.float64)
    found = passed_first(tl.cumsum(weight), weight, token, rest)
    tl.store(chosen + row, tl.where(tl.sum(mass) > 0, found, vocab_size - 1).to(tl.int64))


def probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(logits / temperature) of `[..., V]`, a one-hot of the first largest at temperature 0; NaN as plain."""
    rows, vocab_size = logits.reshape(-1, logits.shape[-1]), logits.shape[-1]
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    probs = torch.empty(logits.shape, dtype=dtype_of(logits), device=logits.device)
    grid = len(rows), triton.cdiv(vocab_size, BLOCK)
    maxima, sums = (torch.empty(grid, dtype=probs.dtype, device=logits.device) for _ in range(2))
    tokens = torch.empty(grid, dtype=torch.int32, device=logits.device)
    given = rows, rows.stride(0), vocab_size, float(temperature), maxima, sums, tokens
    block_peaks[grid](*given, temperature == 0, BLOCK)
    normalised[grid](*given, probs, temperature == 0, BLOCK, triton.next_power_of_2(grid[1]))
    return probs


def draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token from each of `weights` `[..., V]` by inversion of `uniforms` `[...]` float64, int64 `[...]`."""
    weights, numbers, vocab_size = weights.contiguous(), uniforms.reshape(-1), weights.shape[-1]
    grid = len(numbers), triton.cdiv(vocab_size, BLOCK)
    masses = torch.empty(grid, dtype=torch.float64, device=weights.device)
    chosen = torch.empty(uniforms.shape, dtype=torch.int64, device=weights.device)
    block_masses[grid](weights, vocab_size, masses, BLOCK)
    blocks = triton.next_power_of_2(grid[1])
    drawn[grid[:1]](weights, vocab_size, masses, grid[1], numbers, numbers.stride(0), chosen, BLOCK, blocks)
    return chosen


def dtype_of(logits: torch.Tensor) -> torch.dtype:
    """Of the probabilities that these logits give."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
