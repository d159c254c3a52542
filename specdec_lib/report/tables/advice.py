"""What to set, what was expected, and what following the advice loses, as tables for readers."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.advice import OFF
from specdec_lib.methods import label
from specdec_lib.report.tables.readable import Format, readable

FORMATS = {
    "category": Format("kind of text"),
    "set": Format("set"),
    "speedup": Format("expected speedup (×)", "{:.2f}"),
    "acceptance_rate": Format("expected acceptance", "{:.3f}"),
    "tokens_per_pass": Format("expected tokens per pass", "{:.2f}"),
    "block_tokens_per_pass": Format("the same by block verification", "{:.2f}"),
    "block_gain": Format("gain of block verification", "{:+.1%}"),
    "saved_by_second": Format("rejected first tokens that a second candidate saves", "{:.0%}"),
    "measured": Format("measured acceptance", "{:.3f}"),
    "agrees": Format("intervals overlap"),
    "two_chains": Format("γ of two chains"),
    "two_tokens_per_pass": Format("their tokens per pass", "{:.2f}"),
    "tried": Format("settings tried"),
    "best": Format("best measured"),
    "best_speedup": Format("its speedup (×)", "{:.2f}"),
    "got": Format("measured with it (×)", "{:.2f}"),
    "regret": Format("regret", "{:.1%}"),
}


def advice_table(advised: pd.DataFrame) -> pd.DataFrame:
    """What to set in each cell, from `advice.advise`; "off" is decoding without speculation."""
    names = [_name((line.method, line.num_draft_tokens) if line.on else OFF) for line in advised.itertuples()]
    table = advised.assign(set=names)
    columns = ["temperature", "category", "batch_size", "context_tokens", "set", "speedup", "evidence"]
    return readable(table, columns, FORMATS | {"speedup": Format("expected of the best setting (×)", "{:.2f}")})


def expected_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Expected acceptance and tokens per pass by kind of text, from `acceptance.acceptance_lines`."""
    columns = ["temperature", "category", "method", "num_draft_tokens", "acceptance_rate", "tokens_per_pass"]
    return readable(lines, [*columns, "block_gain", "saved_by_second", "num_prompts", "evidence"], FORMATS)


def block_table(lines: pd.DataFrame) -> pd.DataFrame:
    """What block verification is expected to gain by gamma, from `acceptance.block_gains`."""
    columns = ["temperature", "method", "num_draft_tokens", "tokens_per_pass", "block_tokens_per_pass", "gain"]
    gain = {"gain": Format("block over token by token (×)", "{:.3f}")}
    return readable(lines, [*columns, "num_prompts", "evidence"], FORMATS | gain)


def second_candidate_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Two chains of draft tokens against the best single one, from `second_candidate.gains_with_presets`."""
    columns = ["gpu", "pair", "temperature", "batch_size", "context_tokens", "num_draft_tokens", "tokens_per_pass"]
    gain = {"gain": Format("two chains over one (×)", "{:.2f}")}
    return readable(lines, [*columns, "two_chains", "two_tokens_per_pass", "gain", "evidence"], FORMATS | gain)


def agreement_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Expected next to measured acceptance, from `acceptance.agreement`."""
    said = lines.assign(agrees=lines["agrees"].map({True: "yes", False: "no"}))
    columns = ["temperature", "category", "method", "num_draft_tokens", "acceptance_rate", "measured", "agrees"]
    return readable(said, columns, FORMATS)


def regret_table(cells: pd.DataFrame) -> pd.DataFrame:
    """What was advised in each cell of the sweep and what it gives up, from `advice.regrets`."""
    table = cells.assign(
        set=[" or ".join(map(_name, names)) for names in cells["advised"]],
        best=[_name(name) for name in cells["best"]],
        got=cells["speedup"],
        speedup=cells["expected"],
    )
    place = ["temperature", "category", "batch_size", "prompt_tokens", "max_new_tokens", "num_prompts", "tried"]
    return readable(table, [*place, "set", "speedup", "got", "best", "best_speedup", "regret"], FORMATS)


def _name(setting: str | tuple[str, int]) -> str:
    return setting if isinstance(setting, str) else f"{label(setting[0])}, γ = {setting[1]}"
