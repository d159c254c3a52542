"""One decoding call of a cell, and the fingerprint of what it emitted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import make_proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.streams import RowStreams
from specdec_lib.models.pair import Pair
from specdec_lib.study.cells import Cell
from specdec_lib.study.given_acceptance import GivenAcceptance
from specdec_lib.study.transformers_generate import transformers_decode


def decode_cell(
    pair: Pair,
    cell: Cell,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    seed: int,
    rows: Sequence[int] | None = None,
    accepted_per_step: Sequence[int] | None = None,
) -> DecodeResult:
    """Decode as `cell` says; seed and rows decide every random number.

    Args:
        prompts: those of the cell, or some of them.
        rows: which rows of the cell the prompts are; by default all. `transformers` draws for all rows together and
            takes no notice.
        accepted_per_step: acceptance to replay instead of finding it; null with trained weights.
    """
    target, sampling = pair.target, cell.sampling
    if cell.engine == "transformers":
        return transformers_decode(target, prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    streams = RowStreams(seed, range(len(prompts)) if rows is None else rows, target.device)
    if cell.num_draft_tokens is None:
        return autoregressive_decode(
            target, prompts, max_new_tokens=max_new_tokens, sampling=sampling, generator=streams
        )
    return speculative_decode(
        target,
        make_proposer(cell.method, pair),
        prompts,
        max_new_tokens=max_new_tokens,
        num_draft_tokens=cell.num_draft_tokens,
        sampling=sampling,
        generator=streams,
        verification=GivenAcceptance(accepted_per_step) if accepted_per_step else "token",
    )


def fingerprint(tokens: Sequence[torch.Tensor]) -> str:
    """For each row of a batch the first 16 hex digits of its tokens' SHA-256, in the order of the rows."""
    hashes = [hashlib.sha256(" ".join(map(str, row.tolist())).encode()).hexdigest() for row in tokens]
    return " ".join(text[:16] for text in hashes)
