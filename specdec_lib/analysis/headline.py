"""The headline of a study, and the lines around it. README, index and reports print what `headline` returns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from specdec_lib.analysis.metrics import OWN_ENGINE, speedups, undisturbed
from specdec_lib.config import StudyParams
from specdec_lib.study.cells import GIVEN

ALTERNATIVES = ("draft_length", "verification")  # tried at the headline setting alone, one after the other
AXES = ("batch_size", "prompt_tokens", "max_new_tokens")


def headline(rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """One line per method and temperature at the headline setting, as `metrics.speedups` makes them.

    The headline setting is the first batch size, prompt length, output length, draft length and verification rule of
    the params, and their `headline_num_draft_tokens`. It is fixed before measuring, so the headline is not the best of
    several noisy numbers. All temperatures have the same prompts: one that does not count at one counts at none.

    Args:
        rows: the results table of a run.
    """
    return speedups(same_prompts(at_headline(rows, params)))


def same_prompts(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of those prompt groups that count with all settings that any group has, at every temperature."""
    setting = ["method", "num_draft_tokens", *ALTERNATIVES]
    settings = undisturbed(rows).groupby(["temperature", "prompt_group"])[setting].apply(_distinct)
    whole = settings[settings == settings.groupby("temperature").transform("max")]
    groups = [set(of_one.index.get_level_values("prompt_group")) for _, of_one in whole.groupby("temperature")]
    return rows[rows["prompt_group"].isin(set.intersection(*groups))] if groups else rows


def _distinct(rows: pd.DataFrame) -> int:
    return len(rows.drop_duplicates())


def headline_over_transformers(rows: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """The same lines, with autoregressive `transformers.generate` as the reference; empty if it was not timed."""
    here = rows[_at(rows, params, AXES) & _at_gamma(rows, params) & at_first(rows, params)]
    lines = speedups(here, reference="transformers")
    return lines[lines["num_prompts"] > 0].reset_index(drop=True)


def at_headline(table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """The library's rows or lines at the headline setting, of any table with the columns of a setting."""
    return _own(table, params, _at(table, params, AXES) & _at_gamma(table, params))


def every_gamma(table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """The library's rows or lines at the headline setting, with every number of draft tokens."""
    return _own(table, params, _at(table, params, AXES))


def every_alternative(table: pd.DataFrame, params: StudyParams, column: str) -> pd.DataFrame:
    """The library's rows or lines at the headline setting, with every number of draft tokens and value of `column`."""
    others = [name for name in ALTERNATIVES if name != column]
    keep = _at(table, params, AXES) & at_first(table, params, others) & (table["engine"] == OWN_ENGINE)
    return table[keep].reset_index(drop=True)


def every_batch(table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """The library's rows or lines at the headline's prompt and output length: every batch size, every gamma."""
    return _own(table, params, _at(table, params, ("prompt_tokens", "max_new_tokens")))


def along(table: pd.DataFrame, params: StudyParams, axis: str) -> pd.DataFrame:
    """The library's rows or lines that vary in `axis`, method and temperature only; all else is as in the headline.

    Args:
        axis: num_draft_tokens, batch_size, prompt_tokens or max_new_tokens.
    """
    keep = _at(table, params, [name for name in AXES if name != axis])
    return _own(table, params, keep if axis == "num_draft_tokens" else keep & _at_gamma(table, params))


def _own(table: pd.DataFrame, params: StudyParams, keep: pd.Series) -> pd.DataFrame:
    return table[keep & at_first(table, params) & (table["engine"] == OWN_ENGINE)].reset_index(drop=True)


def _at(table: pd.DataFrame, params: StudyParams, axes: Collection[str]) -> pd.Series:
    """Whether a line lies at the first value of these axes."""
    firsts = (params.batch_sizes[0], params.prompt_tokens[0], params.max_new_tokens[0])
    keep = pd.Series(True, index=table.index)
    for axis, first in zip(AXES, firsts, strict=True):
        if axis in axes:  # natural prompts are 0 in the params and null in the table
            keep &= table[axis].fillna(0).astype(int) == first
    return keep


def _at_gamma(table: pd.DataFrame, params: StudyParams) -> pd.Series:
    """Whether a line has the headline gamma; the baseline has none and belongs to every gamma."""
    gamma = params.headline_num_draft_tokens
    return table["num_draft_tokens"].fillna(gamma).astype(int) == gamma


def at_first(table: pd.DataFrame, params: StudyParams, columns: Sequence[str] = ALTERNATIVES) -> pd.Series:
    """Whether a line has the params' first value of `columns`; lines that name none, or a given acceptance, count."""
    keep = pd.Series(True, index=table.index)
    for name in columns:
        if name in table:
            keep &= table[name].isna() | table[name].isin([getattr(params, name)[0], GIVEN])
    return keep
