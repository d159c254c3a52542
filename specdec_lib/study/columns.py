"""The columns of a row that say what was run and what was decoded."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import asdict

from specdec_lib.decoding.result import DecodeResult
from specdec_lib.study.cell_files import Row
from specdec_lib.study.cells import Cell
from specdec_lib.study.decode_cell import fingerprint
from specdec_lib.study.prompts import Encoded


def identity_columns(cell: Cell, repetition: int, prompts: Sequence[Encoded]) -> Row:
    """The columns that say what was run."""
    facts = {name: value for name, value in asdict(cell).items() if name not in ("source", "repetitions", "seed")}
    categories = {prompt.category for prompt, _ in prompts}
    speculative = cell.num_draft_tokens is not None
    return (
        facts
        | cell.source.columns()
        | {
            "cell_id": cell.id,
            "host": socket.gethostname(),
            "status": "ok",
            "error": None,
            "evidence": "measured",
            "draft_id": None if not speculative else "ngram" if cell.method == "ngram" else cell.source.draft_id,
            "verification": "token" if speculative else None,
            "repetition": repetition,
            "seed": cell.repetition_seed(repetition),
            "prompt_ids": " ".join(prompt.id for prompt, _ in prompts),
            "category": categories.pop() if len(categories) == 1 else None,
            "mean_prompt_tokens": sum(len(ids) for _, ids in prompts) / len(prompts),
        }
    )


def counter_columns(result: DecodeResult) -> Row:
    """The columns that say what was decoded; null where there was nothing to count."""
    speculative = result.steps > 0
    return {
        "tokens_sha256": fingerprint(result.tokens),
        "new_tokens": result.new_tokens,
        "steps": result.steps if speculative else None,
        "drafted_tokens": result.drafted if speculative else None,
        "tested_tokens": result.tested if speculative else None,
        "accepted_tokens": result.accepted if speculative else None,
        "accepted_by_position": result.accepted_by_position if speculative else None,
        "tested_by_position": result.tested_by_position if speculative else None,
        "acceptance_rate": result.acceptance_rate,
        "draft_efficiency": result.draft_efficiency,
        "mean_acceptance_length": result.mean_acceptance_length,
    }
