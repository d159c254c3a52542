"""The tables of the certificate of exactness for readers."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from specdec_lib.exactness.certificate import Certificate
from specdec_lib.report.captions import exactness as captions
from specdec_lib.report.tables.readable import Format, readable

LEVELS = {"by_yield": "yield", "by_greedy": "greedy", "by_enumeration": "enumeration", "by_joint_law": "joint law"}
YES_NO = {True: "yes", False: "no"}


def four_checks(certificate: Certificate | None) -> pd.DataFrame:
    """Check, outcome and evidence, the strongest evidence first; without a certificate or its table: not run."""
    checks: list[
        tuple[str, str, list[str], Callable[..., str]]
    ] = [  # how its failures begin, its tables, what they show
        ("every path enumerated", "enumeration:", ["enumeration"], captions.finding_enumeration),
        ("samplers with a bug", "mutants:", ["mutants"], captions.finding_mutants),
        ("greedy output", "greedy:", ["greedy", "divergences"], captions.finding_greedy),
        ("sampled output", "joint law:", ["tests"], captions.finding_sampled),
    ]
    said = [] if certificate is None else certificate.failures()
    lines = []
    for check, start, names, finding in checks:
        found = [getattr(certificate, name, pd.DataFrame()) for name in names]
        failures = [each.removeprefix(start).strip() for each in said if each.startswith(start)]
        outcome = "failed" if failures else "not run" if found[0].empty else "passed"
        evidence = f"{len(failures)} failed, the first: {failures[0]}." if failures else finding(*found)
        lines.append((check, outcome, evidence))
    return pd.DataFrame(lines, columns=["check", "outcome", "evidence"])


def enumeration_table(table: pd.DataFrame) -> pd.DataFrame:
    """One line per pair, method, way to compute and draft length: paths and the largest error over the filters."""
    if table.empty:
        return table
    keys = [
        key for key in ("pair", "method", "verification", "draft_length", "path", "num_draft_tokens") if key in table
    ]  # old runs have fewer
    lines = table.groupby(keys, sort=False).agg(
        filters=("pair", "size"),
        prompts=("prompts", "max"),
        paths=("paths", "sum"),
        largest_error=("largest_error", "max"),
        unexplained=("unexplained", "max"),
    )
    formats = {
        "path": Format("computed in"),
        "largest_error": Format("largest error", "{:.1e}"),
        "unexplained": Format("unexplained", "{:g}"),
    }
    return readable(lines.reset_index(), [*keys, *list(lines)], formats)


def law_table(tests: pd.DataFrame) -> pd.DataFrame:
    """One line per setting: over its positions the smallest p-value, the least power, the most mass seen in sums."""
    return _by_sampler(tests, batch=("batch_size", "first"))


def subject_table(tests: pd.DataFrame) -> pd.DataFrame:
    """Like `law_table`, for other people's samplers."""
    return _by_sampler(tests)


def _by_sampler(tests: pd.DataFrame, **more: tuple[str, str]) -> pd.DataFrame:
    if tests.empty:
        return tests
    lines = tests.groupby("sampler", sort=False).agg(
        **more,
        positions=("position", "size"),
        samples=("samples", "min"),
        pooled=("pooled", "max"),
        p_value=("p_value", "min"),
        usual=("usual_p_value", "min"),
        bias=("detectable_bias", "max"),
        rejected=("rejected", "any"),
    )
    lines = lines.assign(verdict=lines["rejected"].map({True: "biased", False: "no bias found"}))
    formats = {
        "samples": Format("samples", "{:,}"),
        "pooled": Format("seen only in sums", "{:.1%}"),
        "p_value": Format("p-value, at most", "{:.2g}"),
        "usual": Format("p-value, chi-square", "{:.2g}"),
        "bias": Format("detectable bias", "{:.2g}"),
    }
    columns = ["sampler", "verdict", "bias", *more, "samples", "p_value", "usual", "pooled", "positions"]
    return readable(lines.reset_index(), columns, formats)


def mutant_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mutant, bias, which levels caught it, and the samples that the joint law was given."""
    if table.empty:
        return table
    caught = [", ".join(name for level, name in LEVELS.items() if line[level]) for _, line in table.iterrows()]
    formats = {
        "bias": Format("bias", "{:.1e}"),
        "unexplained": Format("paths that disagree", "{:.0%}"),
        "caught": Format("caught by"),
        "joint_law_samples": Format("joint law, samples", "{:,}"),
    }
    table = table.assign(caught=[names or "none" for names in caught])
    return readable(table, ["mutant", *formats], formats)


def greedy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Greedy agreement by precision, method and draft length."""
    if table.empty:
        return table
    equal = [f"{line.equal_rows} of {line.rows}" for line in table.itertuples()]
    formats = {
        "dtype": Format("precision"),
        "equal": Format("equal rows"),
        "rounding_bound": Format("rounding bound (logits)", "{:.2g}"),
        "decided": Format("positions decided beyond it", "{:.0%}"),
    }
    columns = ["dtype", "method", "num_draft_tokens", "equal", "acceptance_rate", "rounding_bound", "decided"]
    return readable(table.assign(equal=equal), columns, formats)


def divergence_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each greedy divergence with its explanation."""
    if table.empty:
        return table
    formats = {
        "gap": Format("lead with 1 token a pass (logits)", "{:.3f}"),
        "rounding_bound": Format("rounding bound", "{:.3f}"),
    }
    table = table.assign(explained=table["explained"].map(YES_NO))
    columns = ["method", "num_draft_tokens", "row", "position", "gap", "rounding_bound", "explained"]
    return readable(table, columns, formats)
