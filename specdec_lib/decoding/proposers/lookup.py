"""Prompt lookup in plain PyTorch: what followed the last tokens of a row where they stood before."""

from __future__ import annotations

import torch

from specdec_lib.decoding.rows import Rows


def copy_continuation(
    rows: Rows, longest: int, shortest: int, num_draft_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:  # [B, gamma], [B, gamma, V]
    """Copy what followed the last `longest` to `shortest` tokens: of the longest match, the most recent one.

    Returns the tokens and their one-hot distributions, which are zero where nothing was found.
    """
    source = _place_after_match(rows, longest, shortest)
    index = source[:, None] + torch.arange(num_draft_tokens, device=source.device)
    known = index < rows.lengths[:, None]
    tokens = rows.tokens.gather(1, index.clamp(max=rows.capacity - 1))
    probs = torch.zeros(*tokens.shape, rows.vocab_size, device=tokens.device)
    return tokens, probs.scatter_(2, tokens[:, :, None], known[:, :, None].float())


def _place_after_match(rows: Rows, longest: int, shortest: int) -> torch.Tensor:  # [B]
    """The position after the match, where the copy begins; the row's length if nothing matches."""
    text, source = rows.tokens[:, : rows.max_length], rows.lengths
    for size in range(shortest, min(longest, rows.max_length - 1) + 1):
        suffix = text.gather(1, (rows.lengths[:, None] + torch.arange(-size, 0, device=text.device)).clamp(min=0))
        windows = text.unfold(1, size, 1)  # [B, max_length-size+1, size]
        after = torch.arange(size, text.shape[1] + 1, device=text.device)  # the position after each window
        match = (windows == suffix[:, None]).all(dim=-1) & (after < rows.lengths[:, None])
        latest = (after * match).max(dim=1).values
        source = torch.where(latest > 0, latest, source)
    return source
