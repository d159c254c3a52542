"""The acceptance that a run expects from its profile, and whether generation found the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from specdec_lib.analysis.headline import at_headline
from specdec_lib.analysis.metrics import distinct_outputs, has_fixed_length, undisturbed
from specdec_lib.analysis.statistics import geometric_mean, ratio_of_sums
from specdec_lib.config import StudyParams
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.study.cells import GIVEN

FILE = "acceptance.json"  # as `study.offline` writes it
LINE = ["method", "temperature", "num_draft_tokens"]
COUNTS = ["steps", "tokens", "block_steps", "block_tokens", "copied", "rejected_first", "saved_by_second"]
COLUMNS = [*LINE, "category", "prompt_id", *COUNTS, "tested_by_position", "accepted_by_position"]


def read_acceptance(folder: Path) -> pd.DataFrame:
    """A row per method, temperature, gamma and prompt of a run's profile; none where there was no profile."""
    path = Path(folder) / FILE
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return pd.DataFrame(rows, columns=COLUMNS)


def acceptance_lines(profile: pd.DataFrame, by: Sequence[str] = ("category",)) -> pd.DataFrame:
    """One line per method, temperature and gamma, and value of `by`: what speculation is expected to count.

    `acceptance_rate` and `tokens_per_pass` have an interval over prompts. `block_gain` is the tokens of a pass by block
    verification over those by the rule of a token, less 1. `saved_by_second` is the share of rejected first tokens in
    whose place a second candidate would be accepted.

    Args:
        profile: from `read_acceptance`.
    """
    keys, lines = [*LINE, *by], []
    for key, group in _summed(profile).groupby(keys, dropna=False):
        tested = ratio_of_sums(group["accepted_tokens"], group["tested_tokens"])
        passes = ratio_of_sums(group["tokens"], group["steps"])
        total = group[COUNTS].sum()
        gain = total["block_tokens"] / total["block_steps"] / (total["tokens"] / total["steps"]) - 1
        saved = total["saved_by_second"] / total["rejected_first"] if total["rejected_first"] > 0 else np.nan
        rates = (tested.value, tested.low, tested.high, passes.value, passes.low, passes.high)
        lines.append((*key, *rates, gain, saved, len(group)))
    rates_of = [f"{name}{end}" for name in ("acceptance_rate", "tokens_per_pass") for end in ("", "_low", "_high")]
    columns = [*keys, *rates_of, "block_gain", "saved_by_second", "num_prompts"]
    return pd.DataFrame(lines, columns=columns).assign(evidence="predicted")


def block_gains(profile: pd.DataFrame) -> pd.DataFrame:
    """What block verification gains by gamma: a line per method, temperature above 0 and gamma, over all prompts.

    `tokens_per_pass` is by the rule of a token, `block_tokens_per_pass` by the block's, geometric means over prompts;
    `gain` is their ratio with a 95 % interval over prompts. At temperature 0 both rules do the same.

    Args:
        profile: from `read_acceptance`.
    """
    lines = []
    for key, group in profile[profile["temperature"] > 0].groupby(LINE):
        by_token, by_block = group["tokens"] / group["steps"], group["block_tokens"] / group["block_steps"]
        rates = [float(np.exp(np.log(rate.astype(float)).mean())) for rate in (by_token, by_block)]
        gain = geometric_mean((by_block / by_token).astype(float), np.random.default_rng(0))
        lines.append((*key, *rates, gain.value, gain.low, gain.high, gain.count))
    columns = [*LINE, "tokens_per_pass", "block_tokens_per_pass", "gain", "gain_low", "gain_high", "num_prompts"]
    return pd.DataFrame(lines, columns=columns).assign(evidence="predicted")


def positions(profile: pd.DataFrame) -> pd.DataFrame:
    """The expected acceptance at each position of the draft, all prompts together: a line per setting and position."""
    lines = []
    for key, group in profile.groupby(LINE):
        tested, accepted = (np.sum(group[f"{name}_by_position"].tolist(), axis=0) for name in ("tested", "accepted"))
        for place, (of, count) in enumerate(zip(tested, accepted, strict=True), start=1):
            lines.append((*key, place, count / of if of > 0 else np.nan))
    return pd.DataFrame(lines, columns=[*LINE, "position", "acceptance_rate"]).assign(evidence="predicted")


def agreement(profile: pd.DataFrame, rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """Expected next to measured acceptance at the headline setting: a line per method, temperature and category.

    `agrees` says whether the two intervals over prompts overlap; null where either has none. The prompts are others of
    the same category.

    Args:
        profile: from `read_acceptance`.
        rows: the results table of the run.
    """
    keys = [*LINE, "category"]
    expected = acceptance_lines(profile)
    outputs = distinct_outputs(undisturbed(at_headline(rows, params)))
    outputs = outputs[has_fixed_length(outputs)]
    outputs = outputs[(outputs["method"] != AUTOREGRESSIVE) & (outputs["verification"] != GIVEN)]
    outputs = outputs[outputs["category"].notna() & outputs["tested_tokens"].notna()]
    counts = outputs.groupby([*keys, "prompt_group"], as_index=False)[["accepted_tokens", "tested_tokens"]].sum()
    lines = []
    for key, group in counts.groupby(keys):
        found = ratio_of_sums(group["accepted_tokens"], group["tested_tokens"])
        lines.append((*key, found.value, found.low, found.high, found.count))
    names = ["measured", "measured_low", "measured_high", "measured_prompts"]
    both = expected.merge(pd.DataFrame(lines, columns=[*keys, *names]), on=keys)
    overlap = (both["measured_low"] <= both["acceptance_rate_high"]) & (
        both["acceptance_rate_low"] <= both["measured_high"]
    )
    known = both[["measured_low", "acceptance_rate_low"]].notna().all(axis=1)
    return both.assign(agrees=overlap.astype("boolean").where(known))


def _summed(profile: pd.DataFrame) -> pd.DataFrame:
    totals = {
        f"{name}_tokens": profile[f"{name}_by_position"].map(sum).astype(float) for name in ("tested", "accepted")
    }
    return profile.assign(**totals)
