"""Does it pay? What the index, the README and the last lines of a run say about each temperature, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from specdec_lib.analysis.crossover import measured_crossovers
from specdec_lib.analysis.headline import along, at_headline, every_gamma, headline, same_prompts
from specdec_lib.analysis.metrics import speedups, undisturbed
from specdec_lib.config import StudyParams, available_params, load_params
from specdec_lib.methods import AUTOREGRESSIVE


@dataclass(frozen=True)
class Verdict:
    """What a run found at one temperature.

    Attributes:
        line: the headline of the params' first method, which was chosen before measuring; from `headline`.
        best: the fastest measured setting at the headline's batch size and lengths, on the prompts that decode with all
            of these settings; None where nothing was measured.
        tried: how many settings `best` is the best of.
        crossover: where the headline's method stops paying, from `crossover`; None for a single batch size.
        command: what measures `best` again.
    """

    temperature: float
    line: Any
    best: Any
    tried: int
    crossover: Any
    command: str


def verdicts(rows: pd.DataFrame, params: StudyParams) -> list[Verdict]:
    """A verdict for each temperature at which the params' first method was measured.

    Args:
        rows: the results table of a run, which may be unfinished.
    """
    lines, every = headline(rows, params), speedups(same_prompts(every_gamma(rows, params)))
    crossovers = measured_crossovers(along(rows, params, "batch_size"), params.gpu, params.seed)
    found = []
    for line in lines[lines["method"] == params.methods[0]].itertuples():
        here = every[(every["temperature"] == line.temperature) & (every["method"] != AUTOREGRESSIVE)]
        timed = here[here["speedup"].notna()].sort_values("speedup", ascending=False)
        best = next(timed.itertuples(), None)
        crossing = crossovers[
            (crossovers["method"] == line.method) & (crossovers["temperature"] == line.temperature)
        ].itertuples()
        command = command_for(best, params) if best else ""
        found.append(Verdict(line.temperature, line, best, len(timed), next(crossing, None), command))
    return found


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
        return f'make run GPU=<params file of {params.gpu}> SET="{_settings(chosen)}"'
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
