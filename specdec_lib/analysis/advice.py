"""What to set: method, gamma, and on or off, from a run's profile; and what following it would have lost.

The profile is the expected acceptance (`acceptance.json`) and the costs of the pieces of a step (`step_costs.json`).
Neither speculates. The expected speedup is the one of `waterfall`'s stage "sampling and host": tokens of a pass, over
what a step costs more than an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from specdec_lib.analysis.acceptance import read_acceptance
from specdec_lib.analysis.headline import AXES, at_first, at_headline
from specdec_lib.analysis.metrics import OWN_ENGINE, has_fixed_length, with_ratios
from specdec_lib.analysis.statistics import CONFIDENCE, geometric_mean
from specdec_lib.analysis.step_table import StepTable, costs_of, read_step_costs
from specdec_lib.config import StudyParams
from specdec_lib.methods import AUTOREGRESSIVE, METHODS

OFF = "off"
EVERY_KIND = "all kinds"  # the category of all prompts together
COST_ERROR = 0.05  # of an expected speedup, from what the costs of the pieces leave unexplained
CELL = ["temperature", "category", "batch_size", "context_tokens"]
CHOICE = ["method", "num_draft_tokens"]

Place = tuple[int, float]  # batch size, tokens in the cache halfway through the output


def expected_speedups(
    profile: pd.DataFrame, costs: pd.DataFrame, places: Iterable[Place], rule: str = "token"
) -> pd.DataFrame:
    """One line per place, temperature, category, method and gamma: the expected speedup with a 95 % interval.

    The interval holds the spread over prompts, pooled over the categories of a setting, and `COST_ERROR`. Where a
    cost was not measured there is no line.

    Args:
        profile: from `acceptance.read_acceptance`.
        costs: the step costs of the same run, or of the same pair on the same device.
        rule: of verification, "token" or "block".
    """
    gains, table, found = _gains(profile, rule), StepTable(costs), []
    for batch, context in places:
        for gain in gains.itertuples():
            cost = _step_cost(table, (batch, context), gain)
            if not np.isfinite(cost):
                continue
            half = np.hypot(gain.half, np.log1p(COST_ERROR))
            value = gain.log_tokens - np.log(cost)
            ends = (float(np.exp(each)) for each in (value, value - half, value + half))
            found.append((gain.temperature, gain.category, batch, context, gain.method, gain.num_draft_tokens, *ends))
    columns = [*CELL, *CHOICE, "speedup", "speedup_low", "speedup_high"]
    return pd.DataFrame(found, columns=columns).assign(evidence="predicted")


def advise(expected: pd.DataFrame) -> pd.DataFrame:
    """The best setting of each cell, a line each: `on` says whether its whole interval lies above 1.

    Args:
        expected: from `expected_speedups`.
    """
    ordered = expected.sort_values("speedup", ascending=False, kind="stable")
    best = ordered.drop_duplicates(CELL).sort_values(CELL, kind="stable", ignore_index=True)
    return best.assign(on=best["speedup_low"] > 1)


def advice_of_run(params: StudyParams, folder: Path) -> pd.DataFrame:
    """What to set wherever the folder's profile has costs, from `advise`.

    Raises:
        ValueError: the folder has no profile.
    """
    profile, costs = read_acceptance(folder), read_step_costs(folder)
    if profile.empty or costs.empty:
        raise ValueError(
            f"{folder} has no profile, as an older run or one of random weights: measure one elsewhere, with advise "
            "--outputs <another folder>, or run the study again"
        )
    return advise(expected_speedups(profile, costs, measured_places(costs), params.verification[0]))


def measured_places(costs: pd.DataFrame) -> list[Place]:
    """The batch sizes and contexts at which passes of the target were timed."""
    timed = costs.loc[costs["model"] == "target", ["batch_size", "context_tokens"]].drop_duplicates()
    return [(int(batch), float(context)) for batch, context in sorted(timed.itertuples(index=False))]


def regrets(rows: pd.DataFrame, params: StudyParams, profile: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """What following the advice loses against the best setting that the sweep measured, a line per cell of the sweep.

    A cell is a temperature, batch size, prompt and output length, with the prompts of one category at the headline's
    lengths or all prompts. The advice chooses among what was measured there, and off, whose speedup is 1. It is given
    for each prompt without what the profile has of that prompt. `regret` is 1 - (speedup as advised) / (speedup of the
    best single setting), geometric means over the cell's prompts, or 0. `wrongly_on` marks advice to speculate with a
    setting whose measured interval lies below 1.

    Args:
        rows: the results table of a run.
        profile, costs: of the same run.
    """
    costs, found = costs_of(rows, costs), []
    for cell, prompts in _swept(rows, params).groupby(["temperature", "category", *AXES], dropna=False):
        gains = prompts.pivot_table(index=["prompt_group", "prompt_ids"], columns=CHOICE, values="speedup").dropna()
        place = int(cell[2]), float(prompts["mean_prompt_tokens"].mean() + cell[4] / 2)
        known = profile[(profile["temperature"] == cell[0])].merge(gains.columns.to_frame(index=False), on=CHOICE)
        others = (known[~known["prompt_id"].isin(names.split())] for _, names in gains.index)
        advised = [_advised(each, costs, place, str(cell[1]), params.verification[0]) for each in others]
        choices = [each for each in advised if each is not None]
        if choices and len(choices) == len(advised):
            found.append((*cell[:2], *map(_whole, cell[2:]), *_outcome(gains, choices)))
    columns = ["temperature", "category", *AXES, "num_prompts", "tried", "advised", "expected", "speedup"]
    columns += ["best", "best_speedup", "regret", "wrongly_on"]
    return pd.DataFrame(found, columns=columns).assign(evidence="measured")


def _outcome(gains: pd.DataFrame, choices: list[tuple[Any, float]]) -> tuple[Any, ...]:
    """The columns of `regrets` from `num_prompts` on.

    Args:
        gains: a line per prompt, and the speedup with each setting that was measured.
        choices: for each prompt the setting that was advised, or `OFF`, and its expected speedup.
    """
    tried = gains.shape[1]
    gains = gains.set_axis(gains.columns.to_flat_index(), axis=1).assign(**{OFF: 1.0})
    logs, names = np.log(gains), list(dict.fromkeys(name for name, _ in choices))
    got = float(np.exp(np.mean([logs[name].iloc[row] for row, (name, _) in enumerate(choices)])))
    expected = float(np.exp(np.mean(np.log([speedup for _, speedup in choices]))))
    means = np.exp(logs.mean())
    wrong = any(_is_slower(gains[name]) for name in names if name != OFF)
    regret = max(float(1 - got / means.max()), 0.0)
    return len(gains), tried, names, expected, got, means.idxmax(), float(means.max()), regret, wrong


def _whole(number: Any) -> Any:
    return number if pd.isna(number) else int(number)


def _advised(
    profile: pd.DataFrame, costs: pd.DataFrame, place: Place, category: str, rule: str
) -> tuple[Any, float] | None:
    """Method and gamma that are advised, or `OFF`, with the expected speedup; None if nothing is expected there."""
    expected = expected_speedups(profile, costs, [place], rule)
    for line in advise(expected[expected["category"] == category]).itertuples():
        return ((line.method, line.num_draft_tokens), line.speedup) if line.on else (OFF, 1.0)
    return None


def _is_slower(ratios: pd.Series) -> bool:
    """Whether the whole interval of the speedup lies below 1."""
    return geometric_mean(ratios, np.random.default_rng(0)).high < 1


def _gains(profile: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The mean logarithm of a pass's tokens, and half its interval, per method, temperature, gamma and category.

    A category has few prompts. So its mean is drawn towards that of all categories, the more, the less categories
    differ for their spread (empirical Bayes; Efron and Morris 1975).
    """
    prefix = "block_" if rule == "block" else ""
    logs = profile.assign(log_tokens=np.log(profile[f"{prefix}tokens"].astype(float) / profile[f"{prefix}steps"]))
    lines = []
    for key, group in logs.groupby(["temperature", "method", "num_draft_tokens"]):
        copied = group["copied"] / group["steps"]
        shares = copied.groupby(group["category"]).mean().to_dict() | {EVERY_KIND: copied.mean()}
        lines += [(*key, category, shares[category], mean, half) for category, mean, half in _means(group)]
    columns = ["temperature", "method", "num_draft_tokens", "category", "copied", "log_tokens", "half"]
    return pd.DataFrame(lines, columns=columns)


def _means(group: pd.DataFrame) -> Iterator[tuple[str, float, float]]:
    """Each category and all together: the mean of `log_tokens` and half its interval."""
    values, of_kind = group["log_tokens"], group.groupby("category")["log_tokens"]
    freedom, means, sizes = len(group) - of_kind.ngroups, of_kind.mean(), of_kind.size()
    within = float(((values - of_kind.transform("mean")) ** 2).sum() / max(freedom, 1))
    noise = within / sizes  # the variance of each category's mean
    between = max(float(means.var() - noise.mean()), 0.0) if len(means) > 1 else 0.0
    for category, mean in means.items():
        trust = between / (between + noise[category]) if between else 0.0
        variance = trust * noise[category] + (1 - trust) ** 2 * (between + noise.mean()) / len(means)
        yield str(category), float(means.mean() + trust * (mean - means.mean())), _half(variance, freedom)
    yield EVERY_KIND, float(values.mean()), _half(float(values.var()) / len(values), len(values) - 1)


def _half(variance: float, freedom: int) -> float:
    """Half the width of an interval around a mean; unbounded where its spread is not known."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance)) if freedom > 0 else np.inf


def _step_cost(table: StepTable, place: Place, gain: Any) -> float:
    """What a step costs, over one without speculation; NaN where a piece was not measured.

    Args:
        gain: method, gamma and temperature, and the share of steps whose draft is `copied`.
    """
    gamma, temperature = gain.num_draft_tokens, gain.temperature
    one, many = (table.ms("target", *place, tokens, temperature) for tokens in (1, gamma + 1))
    choose, verify = (table.ms("sampling", *place, tokens, temperature) for tokens in (1, gamma + 1))
    drafting = table.drafting_ms(gain.method, *place, gamma, temperature)
    replayed = "replayed" in table.costs and table.costs["replayed"].any()
    if np.isfinite(drafting) and len(METHODS[gain.method].pieces) > 1 and not replayed:
        # Where all rows are copied, the host leaves the other piece at one token, in which it reads what was emitted.
        whole, short = (table.ms("draft", *place, tokens, temperature) for tokens in (gamma, 1))
        drafting -= gain.copied ** place[0] * (whole - short)
    return (many + drafting + verify) / (one + choose)


def _swept(rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """The speedup of every prompt and setting, by cell: all prompts, and at the headline's lengths each category."""
    paired = with_ratios(rows[rows["engine"] == OWN_ENGINE])
    paired = paired[has_fixed_length(paired) & at_first(paired, params, ["verification"])]
    paired = paired[(paired["method"] != AUTOREGRESSIVE) & paired["speedup"].notna()]
    of_one = at_headline(paired, params)
    both = [paired.assign(category=EVERY_KIND), of_one[of_one["category"].notna()]]
    keys = ["temperature", "category", *AXES, *CHOICE, "prompt_group", "prompt_ids", "mean_prompt_tokens"]
    return pd.concat(both).groupby(keys, dropna=False, as_index=False)["speedup"].median()


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Mean and worst regret, and how many cells were wrongly on, of `regrets`; NaN and 0 of none."""
    worst = table["regret"].max() if len(table) else np.nan
    return {"mean": float(table["regret"].mean()), "worst": float(worst), "wrong": int(table["wrongly_on"].sum())}
