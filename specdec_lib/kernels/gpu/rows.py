"""A Triton kernel that ends a step: appends, counts and reports as `decoding.ops.PlainOps.append` does.

One program handles all rows, `ROWS` at a time, in one warp: what it reads and then overwrites, no other may touch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS = 32


@triton.jit
def cut_at_stop(
    step: tl.tensor,  # [R, P], the tokens after the row's last one
    emitted: tl.tensor,  # [R], how many of them are emitted but for stop tokens
    stop_token_ids: tl.tensor,  # [stops] int64
    place: tl.tensor,  # [P]
    STOPS: tl.constexpr,
    PLACES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # [R] and [R] bool
    """How many tokens are emitted, a stop token the last of them, and whether there is one."""
    stops = step != step
    for stop in tl.static_range(STOPS):
        stops = stops | (step == tl.load(stop_token_ids + stop))
    stops = stops & (place[None, :] < emitted[:, None])
    first = tl.min(tl.where(stops, place[None, :], PLACES), axis=1)
    return tl.minimum(emitted, first + 1), first < PLACES


@triton.jit
def places_counted(
    chance: tl.tensor,  # [R, P], the draft's of its tokens; 0 where nothing was drafted
    emitted: tl.tensor,  # [R]
    before_last: tl.tensor,  # [R], how many of them come before a row's last token
    accepted: tl.tensor,  # [R]
    place: tl.tensor,  # [P]
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # [R, P] int64 each
    """Where a token was drafted, tested and kept, as `decoding.counters` says it."""
    drafted = ((chance > 0) & (emitted > 0)[:, None]).to(tl.int64)
    decided = (chance > 0) & (place[None, :] < before_last[:, None])
    tested = (decided & (place[None, :] <= accepted[:, None])).to(tl.int64)
    kept = (decided & (place[None, :] < accepted[:, None])).to(tl.int64)
    return drafted, tested, kept


@triton.jit
def add_to_counts(
    counts: tl.tensor,  # [1 + 3 gamma] int64, in place
    steps: tl.tensor,
    drafts: tl.tensor,  # [P] each
    tests: tl.tensor,
    keeps: tl.tensor,
    place: tl.tensor,  # [P]
    GAMMA: tl.constexpr,
) -> None:
    """Add what one step counted to the call's counts."""
    is_place = place < GAMMA
    drafts += tl.load(counts + 1 + place, mask=is_place, other=0)
    tests += tl.load(counts + 1 + GAMMA + place, mask=is_place, other=0)
    keeps += tl.load(counts + 1 + 2 * GAMMA + place, mask=is_place, other=0)
    steps += tl.load(counts)
    tl.debug_barrier()
    tl.store(counts, steps)
    tl.store(counts + 1 + place, drafts, mask=is_place)
    tl.store(counts + 1 + GAMMA + place, tests, mask=is_place)
    tl.store(counts + 1 + 2 * GAMMA + place, keeps, mask=is_place)


@triton.jit
def end_step(
    tokens: tl.tensor,  # [B, capacity] int64, in place
    capacity: tl.tensor,
    lengths: tl.tensor,  # [B] int64, in place
    ends: tl.tensor,  # [B] int64
    done: tl.tensor,  # [B] bool, in place
    stop_token_ids: tl.tensor,  # [stops] int64
    saw_nan: tl.tensor,  # a bool, in place
    num_emitted: tl.tensor,  # [B] int64, out
    num_tested: tl.tensor,  # [B] int64, out if counted
    counts: tl.tensor,  # [1 + 3 gamma] int64, in place
    report: tl.tensor,  # [3 + 2 B] int64, out
    draft_tokens: tl.tensor,  # [B, drafted] int64
    draft_probs: tl.tensor,  # [B, drafted, V]
    target_probs: tl.tensor,  # [B, drafted+1, V]
    num_accepted: tl.tensor,  # [B] int64
    next_token: tl.tensor,  # [B] int64
    batch: tl.tensor,
    vocab_size: tl.tensor,
    DRAFTED: tl.constexpr,
    GAMMA: tl.constexpr,  # of the counts; None of a step that is not counted
    STOPS: tl.constexpr,
    ROWS: tl.constexpr,
    PLACES: tl.constexpr,  # a power of two above drafted and gamma
) -> None:
    """End a step for every row."""
    place = tl.arange(0, PLACES)
    nan = tl.load(saw_nan).to(tl.int32)
    remaining, longest, steps = tl.zeros([], tl.int64), tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    drafts, tests, keeps = (tl.zeros([PLACES], tl.int64), tl.zeros([PLACES], tl.int64), tl.zeros([PLACES], tl.int64))
    for start in range(0, batch, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        here = row < batch
        length, end = tl.load(lengths + row, mask=here, other=0), tl.load(ends + row, mask=here, other=0)
        over = tl.load(done + row, mask=here, other=1).to(tl.int32) != 0
        accepted = tl.load(num_accepted + row, mask=here, other=0)
        following = tl.load(next_token + row, mask=here, other=0)
        is_draft = here[:, None] & (place < DRAFTED)[None, :]
        draft = tl.load(draft_tokens + row[:, None] * DRAFTED + place[None, :], mask=is_draft, other=0)
        is_next = (place[None, :] == accepted[:, None]) | (place == DRAFTED)[None, :]
        step = tl.where(is_next, following[:, None], draft)
        at = tokens + row[:, None] * capacity + length[:, None] + place[None, :]
        tl.store(at, step, mask=here[:, None] & (place <= DRAFTED)[None, :])

        emitted = tl.where(over, 0, tl.minimum(accepted + 1, end - length))
        if STOPS > 0:
            emitted, stopped = cut_at_stop(step, emitted, stop_token_ids, place, STOPS, PLACES)
            over = over | stopped
        length += emitted
        over = over | (length >= end)

        law = target_probs + (row[:, None] * (DRAFTED + 1) + place[None, :]) * vocab_size
        first_prob = tl.load(law, mask=here[:, None] & (place <= DRAFTED)[None, :], other=0.0)
        nan = tl.maximum(nan, tl.max((first_prob != first_prob).to(tl.int32)))
        if GAMMA is None:
            num = tl.load(num_tested + row, mask=here, other=0)
        else:
            chances = draft_probs + (row[:, None] * DRAFTED + place[None, :]) * vocab_size + draft
            chance = tl.load(chances, mask=is_draft, other=0.0)
            nan = tl.maximum(nan, tl.max((chance != chance).to(tl.int32)))
            before_last = tl.minimum(emitted, end - length + emitted - 1)
            drafted, tested, kept = places_counted(chance, emitted, before_last, accepted, place)
            steps += tl.sum((emitted > 0).to(tl.int64))
            drafts, tests, keeps = (drafts + tl.sum(drafted, 0), tests + tl.sum(tested, 0), keeps + tl.sum(kept, 0))
            num = tl.sum(tested, axis=1)

        tl.debug_barrier()  # all of the above is read before any of it is overwritten
        tl.store(lengths + row, length, mask=here)
        tl.store(done + row, over, mask=here)
        tl.store(num_emitted + row, emitted, mask=here)
        tl.store(num_tested + row, num, mask=here)
        tl.store(report + 3 + row, emitted, mask=here)
        tl.store(report + 3 + batch + row, num, mask=here)
        remaining = tl.maximum(remaining, tl.max(tl.where(over, 0, end - length)))
        longest = tl.maximum(longest, tl.max(length))
    if GAMMA is not None:
        add_to_counts(counts, steps, drafts, tests, keeps, place, GAMMA)
    tl.store(saw_nan, nan != 0)
    tl.store(report, remaining)
    tl.store(report + 1, longest)
    tl.store(report + 2, nan.to(tl.int64))


def append(*tensors: torch.Tensor) -> None:
    """What `kernels.ops.append` does; its arguments, one after another."""
    tokens, lengths, ends, done, stop_token_ids, saw_nan, num_emitted, num_tested, counts, report = tensors[:10]
    draft_tokens, draft_probs, target_probs, num_accepted, next_token = (each.contiguous() for each in tensors[10:])
    drafted, gamma = draft_tokens.shape[1], (len(counts) - 1) // 3 if len(counts) else None
    end_step[1,](
        tokens, tokens.stride(0), lengths, ends, done, stop_token_ids, saw_nan, num_emitted, num_tested, counts, report,
        draft_tokens, draft_probs, target_probs, num_accepted.long(), next_token, len(lengths), target_probs.shape[-1],
        drafted, gamma, len(stop_token_ids), ROWS, triton.next_power_of_2(max(drafted, gamma or 0) + 1),
        num_warps=1,
    )  # fmt: skip
