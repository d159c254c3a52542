"""Does it pay? What the index, the README and the last lines of a run say about each temperature, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from specdec_lib.analysis.headline import along, at_headline, every_gamma, headline, same_prompts
from specdec_lib.analysis.metrics import speedups, undisturbed
from specdec_lib.config import StudyParams
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.params_files import available_params, load_params


@dataclass(frozen=True)
class Verdict:
    """What a run found at one temperature.

    Attributes:
        line: the headline of the params' first method, which was chosen before measuring; from `headline`.
        best: the fastest measured setting at the headline's batch size and lengths, on the prompts that decode with all
            of these settings; None where nothing was measured.
        tried: how many settings `best` is the best of.
        there: the headline's own setting on these same prompts; None where it was not measured.
        batches: lines of the headline's method at each batch size measured, the smallest first, from `speedups`;
            their `e2e_speedup` is the ratio of total tokens per second.
        command: what measures `best` again.
    """

    temperature: float
    line: Any
    best: Any
    tried: int
    there: Any
    batches: list[Any]
    command: str


def verdicts(rows: pd.DataFrame, params: StudyParams) -> list[Verdict]:
    """A verdict for each temperature at which the params' first method was measured.

    Args:
        rows: the results table of a run, which may be unfinished.
    """
    lines, every = headline(rows, params), speedups(same_prompts(every_gamma(rows, params)))
    by_batch = speedups(along(rows, params, "batch_size")).sort_values("batch_size")
    found = []
    for line in lines[lines["method"] == params.methods[0]].itertuples():
        here = every[(every["temperature"] == line.temperature) & (every["method"] != AUTOREGRESSIVE)]
        timed = here[here["speedup"].notna()].sort_values("speedup", ascending=False)
        best = next(timed.itertuples(), None)
        there = next(_same(timed, line, "num_draft_tokens").itertuples(), None)
        batches = [each for each in _same(by_batch, line).itertuples() if pd.notna(each.speedup)]
        command = command_for(best, params) if best else ""
        found.append(Verdict(line.temperature, line, best, len(timed), there, batches, command))
    return found


def _same(lines: pd.DataFrame, line: Any, *names: str) -> pd.DataFrame:
    """The lines of the same method and temperature, and of the same values in these columns."""
    same = [lines[name] == getattr(line, name) for name in ("method", "temperature", *names)]
    return lines[np.logical_and.reduce(same)]


def command_for(line: Any, params: StudyParams) -> str:
    """The command that measures one setting of a run again, with whatever the run had changed in its params file."""
    chosen = {
        "methods": [line.method],
        "num_draft_tokens": [line.num_draft_tokens],
        "headline_num_draft_tokens": line.num_draft_tokens,
        "temperatures": [line.temperature],
        "batch_sizes": params.batch_sizes[:1],
        "prompt_tokens": params.prompt_tokens[:1],
        "max_new_tokens": params.max_new_tokens[:1],
    }
    if params.gpu not in available_params():
        return f'make run GPU=path/to/{params.gpu}.yaml SET="{_settings(chosen)}"'
    file = load_params(params.gpu)
    changed = {key: value for key, value in params if value != getattr(file, key)} | chosen
    differing = {key: value for key, value in changed.items() if value != getattr(file, key)}
    return f'make run GPU={params.gpu} SET="{_settings(differing)}"'


def _settings(values: dict[str, Any]) -> str:
    """Keys and values as the command line takes them."""
    return " ".join(f"{key}={_yaml(value)}" for key, value in values.items())


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_yaml, value))}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def exclusions(rows: pd.DataFrame) -> dict[str, int]:
    """How many rows count in no number, by the reason; a row with two reasons has the first of them."""
    ok = rows["status"] == "ok"
    reasons = {
        "failed": ~ok,
        "drift": rows["drifted"].fillna(False).astype(bool),
        "throttled": rows["throttled"].fillna(False).astype(bool),
        "shared": rows["foreign_processes"].fillna(0).astype(int) > 0,
    }
    left = pd.Series(True, index=rows.index)
    counts = {}
    for reason, holds in reasons.items():
        counts[reason] = int((holds & left).sum())
        left &= ~holds
    return {reason: count for reason, count in counts.items() if count}


def prompts_used(rows: pd.DataFrame, params: StudyParams) -> list[str]:
    """The ids of the prompts that the headline counts, in the order of their groups."""
    counted = same_prompts(undisturbed(at_headline(rows, params))).sort_values("prompt_group")
    return list(dict.fromkeys(name for ids in counted["prompt_ids"].dropna() for name in ids.split()))
