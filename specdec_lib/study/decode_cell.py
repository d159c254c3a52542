"""One decoding call of a cell, and the fingerprint of what it emitted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.methods import make_proposer
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
) -> DecodeResult:
    """Decode as `cell` says; seed and rows decide every random number.

    Args:
        prompts: those of the cell, or some of them; 1-D int64 tensors.
        rows: which rows of the cell the prompts are; by default all. `transformers` draws for all rows together and
            ignores it.
    """
    target, sampling = pair.target, cell.sampling
    if cell.engine == "transformers":
        return transformers_decode(target, prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    if cell.num_draft_tokens is None:
        return autoregressive_decode(
            target,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            generator=generator,
            row_numbers=rows,
        )
    assert cell.verification is not None, "only the baseline has no verification rule"
    return speculative_decode(
        target,
        make_proposer(cell.method, pair),
        prompts,
        max_new_tokens=max_new_tokens,
        num_draft_tokens=cell.num_draft_tokens,
        sampling=sampling,
        generator=generator,
        row_numbers=rows,
        verification=GivenAcceptance(cell.accepted_per_step) if cell.accepted_per_step else cell.verification,
    )


def fingerprint(tokens: Sequence[torch.Tensor]) -> str:
    """For each row of a batch the first 16 hex digits of its tokens' SHA-256, in the order of the rows."""
    hashes = [hashlib.sha256(" ".join(map(str, row.tolist())).encode()).hexdigest() for row in tokens]
    return " ".join(text[:16] for text in hashes)
