"""What the certificate's tables show, in one or two sentences each."""

from __future__ import annotations

import pandas as pd

from specdec_lib.exactness.certificate import FALSE_ALARM, POWER, SOUND


def finding_enumeration(table: pd.DataFrame) -> str:
    """How many paths were enumerated, and the largest error on each way to compute."""
    if table.empty:
        return "No path was enumerated."
    errors = table.groupby("path", sort=False)["largest_error"].max()
    listed = "; ".join(f"{error:.1e} ({path})" for path, error in errors.items())
    return f"{table['paths'].sum():,} paths were enumerated. The largest error of a probability is {listed}."


def finding_sampled(tests: pd.DataFrame) -> str:
    """In how many of our samplers no test finds a bias, and which bias every test would have found."""
    if tests.empty:
        return "No sampler was tested."
    samplers = tests["sampler"].nunique()
    biased = tests.loc[tests["rejected"], "sampler"].nunique()
    return (
        f"In {samplers - biased} of {samplers} samplers none of {len(tests)} tests finds a bias; the chance of a false "
        f"alarm is {FALSE_ALARM:g} at most. With probability {POWER:g} the sharpest test finds a total variation "
        f"(0 to 1) above {tests['detectable_bias'].min():.2g}, the bluntest above {tests['detectable_bias'].max():.2g}."
    )


def finding_mutants(table: pd.DataFrame) -> str:
    """How many mutants are rejected, and whether the sound sampler is."""
    if table.empty:
        return "No mutant was tried."
    mutants, sound = table[table["mutant"] != SOUND], table[table["mutant"] == SOUND]
    verdict = "rejected" if sound["rejected"].any() else "not rejected"
    return f"{mutants['rejected'].sum()} of {len(mutants)} mutants are rejected, the sound sampler is {verdict}."


def finding_greedy(greedy: pd.DataFrame, divergences: pd.DataFrame) -> str:
    """How many greedy outputs equal the baseline's in each precision, and how many divergences rounding explains."""
    if greedy.empty:
        return "No greedy output was compared."
    sentences = [
        f"In {dtype} {lines['equal_rows'].sum()} of {lines['rows'].sum()} greedy outputs equal the baseline's."
        for dtype, lines in greedy.groupby("dtype", sort=False)
    ]
    if len(divergences):
        sentences.append(f"Rounding explains {divergences['explained'].sum()} of {len(divergences)} divergences.")
    return " ".join(sentences)


def finding_subjects(tests: pd.DataFrame) -> str:
    """In which samplers of others a bias was found."""
    if tests.empty:
        return "No sampler of others was tested."
    biased = sorted(tests.loc[tests["rejected"].astype(bool), "sampler"].unique())
    found = f"a bias was found in {'; '.join(biased)}" if biased else "no bias was found"
    return f"Of {tests['sampler'].nunique()} samplers of others, {found}."
