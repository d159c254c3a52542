"""The columns of a row that say what was run and what was decoded."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import asdict

from specdec_lib.decoding.result import DecodeResult
from specdec_lib.methods import METHODS
from specdec_lib.study.cells import GIVEN, Cell
from specdec_lib.study.decode_cell import fingerprint
from specdec_lib.study.prompts import Encoded
from specdec_lib.study.schema import Row

RATES = ("acceptance_rate", "draft_efficiency", "mean_acceptance_length")
_NO_COLUMNS = ("source", "repetitions", "seed", "accepted_per_step")  # fields of a cell


def identity_columns(cell: Cell, repetition: int, prompts: Sequence[Encoded]) -> Row:
    """The columns that say what was run."""
    facts = {name: value for name, value in asdict(cell).items() if name not in _NO_COLUMNS}
    categories = {prompt.category for prompt, _ in prompts}
    return (
        facts
        | cell.source.columns()
        | {
            "cell_id": cell.id,
            "host": socket.gethostname(),
            "status": "ok",
            "error": None,
            "evidence": "measured",
            "draft_id": METHODS[cell.method].draft_id(cell.source.draft_id),
            "repetition": repetition,
            "seed": cell.repetition_seed(repetition),
            "prompt_ids": " ".join(prompt.id for prompt, _ in prompts),
            "category": categories.pop() if len(categories) == 1 else None,
            "mean_prompt_tokens": sum(len(ids) for _, ids in prompts) / len(prompts),
        }
    )


def counter_columns(cell: Cell, result: DecodeResult) -> Row:
    """The columns that say what was decoded; null where there was nothing to count.

    Where the acceptance was given, the counters stay and the rates are null: they are no result.
    """
    speculative = result.steps > 0
    counters: Row = {
        "steps": result.steps,
        "drafted_tokens": result.drafted,
        "tested_tokens": result.tested,
        "accepted_tokens": result.accepted,
        "accepted_by_position": result.accepted_by_position,
        "tested_by_position": result.tested_by_position,
    }
    rates: Row = {name: getattr(result, name) for name in RATES}
    return {
        "tokens_sha256": fingerprint(result.tokens),
        "new_tokens": result.new_tokens,
        **(counters if speculative else dict.fromkeys(counters)),
        **(rates if cell.verification != GIVEN else dict.fromkeys(RATES)),
    }
