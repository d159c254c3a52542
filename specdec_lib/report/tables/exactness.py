"""The certificate's tables for readers, and a sentence on each."""

from __future__ import annotations

import pandas as pd

from specdec_lib.exactness.certificate import Certificate
from specdec_lib.exactness.joint_law import FALSE_ALARM, POWER
from specdec_lib.exactness.mutants import SOUND
from specdec_lib.report.figures.style import METHOD_NAMES
from specdec_lib.report.tables.sweep import UNDEFINED

LEVELS = {"by_yield": "yield", "by_greedy": "greedy", "by_enumeration": "enumeration", "by_joint_law": "joint law"}


def finding_verdict(certificate: Certificate) -> str:
    """Whether the certificate holds, and the exact part in numbers."""
    failures = certificate.failures()
    if failures:
        return f"The certificate fails: {'; '.join(failures)}."
    return f"{finding_enumeration(certificate.enumeration)} {finding_mutants(certificate.mutants)}"


def enumeration_table(table: pd.DataFrame) -> pd.DataFrame:
    """One line per pair, way through the engine and draft length: paths and the largest error over the filters."""
    grouped = table.groupby(["pair", "path", "num_draft_tokens"], sort=False)
    lines = grouped.agg(
        filters=("pair", "size"),
        prompts=("prompts", "max"),
        paths=("paths", "sum"),
        error=("largest_error", "max"),
        unexplained=("unexplained", "max"),
    ).reset_index()
    lines["error"] = lines["error"].map("{:.1e}".format)
    lines["unexplained"] = lines["unexplained"].map("{:g}".format)
    return lines.rename(columns={"path": "computed in", "num_draft_tokens": "γ", "error": "largest error"})


def finding_enumeration(table: pd.DataFrame) -> str:
    """One sentence on a table of `exactness_adversaries.enumeration_table`."""
    errors = table.groupby("path", sort=False)["largest_error"].max()
    return (
        f"Over {table['paths'].sum():,} enumerated paths of {table['pair'].nunique()} pairs, draft lengths "
        f"{table['num_draft_tokens'].min()} to {table['num_draft_tokens'].max()}, the largest error of a sequence's "
        f"probability is {'; '.join(f'{error:.1e} ({path})' for path, error in errors.items())}."
    )


def law_table(tests: pd.DataFrame) -> pd.DataFrame:
    """One line per setting: over its positions the smallest p-value, the least power, the most mass seen in sums."""
    return _by_sampler(tests, batch=("batch_size", "first"))


def subject_table(tests: pd.DataFrame) -> pd.DataFrame:
    """Like `law_table`, for other people's samplers."""
    return _by_sampler(tests)


def _by_sampler(tests: pd.DataFrame, **more: tuple[str, str]) -> pd.DataFrame:
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
    lines = lines.reset_index()
    lines["samples"] = lines["samples"].map("{:,}".format)
    lines["pooled"] = lines["pooled"].map("{:.1%}".format)
    lines["p_value"] = lines["p_value"].map("{:.2g}".format)
    lines["usual"] = lines["usual"].map("{:.2g}".format)
    lines["bias"] = lines["bias"].map("{:.2g}".format)
    lines["rejected"] = lines["rejected"].map({True: "biased", False: "no bias found"})
    names = {
        "pooled": "seen only in sums",
        "p_value": "p-value, at most",
        "usual": "p-value, chi-square",
        "bias": "detectable bias",
        "rejected": "verdict",
    }
    return lines.rename(columns=names)


def finding_sampled(tests: pd.DataFrame) -> str:
    """One sentence on the tests of our own samplers."""
    samplers = tests["sampler"].nunique()
    biased = tests.loc[tests["rejected"], "sampler"].nunique()
    return (
        f"In {samplers - biased} of {samplers} samplers none of {len(tests)} tests finds a bias; sound samplers would "
        f"fail any with probability {FALSE_ALARM:g} at most. A bias in the law of the pairs that are told apart above "
        f"{tests['detectable_bias'].max():.2g} would have been caught by every test with probability {POWER:g}."
    )


def mutant_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mutant, bias, which levels caught it, and the samples at which the joint law did or gave up."""
    caught = table[list(LEVELS)].rename(columns=LEVELS).apply(lambda row: ", ".join(row.index[row]), axis=1)
    samples = [
        f"{line.joint_law_samples:,}" if line.by_joint_law else f"not at {line.joint_law_samples:,}"
        for line in table.itertuples()
    ]
    return pd.DataFrame(
        {
            "mutant": table["mutant"],
            "bias": table["bias"].map("{:.1e}".format, na_action="ignore").fillna(UNDEFINED),
            "paths that disagree": table["unexplained"].map("{:.0%}".format),
            "caught by": caught.replace("", "none"),
            "joint law, samples": samples,
        }
    )


def finding_mutants(table: pd.DataFrame) -> str:
    """One sentence on a table of `exactness_mutants.mutant_table`."""
    mutants, sound = table[table["mutant"] != SOUND], table[table["mutant"] == SOUND]
    verdict = "rejected" if sound["rejected"].any() else "not rejected"
    return f"{mutants['rejected'].sum()} of {len(mutants)} mutants are rejected, the sound sampler is {verdict}."


def greedy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Greedy agreement by precision, method and draft length."""
    return pd.DataFrame(
        {
            "precision": table["dtype"],
            "method": table["method"].map(METHOD_NAMES),
            "γ": table["num_draft_tokens"],
            "equal rows": [f"{line.equal_rows} of {line.rows}" for line in table.itertuples()],
            "acceptance rate": table["acceptance_rate"].map("{:.2f}".format, na_action="ignore").fillna(UNDEFINED),
            "rounding bound (logits)": table["rounding_bound"].map("{:.2g}".format),
            "positions decided beyond it": table["decided"].map("{:.0%}".format),
        }
    )


def divergence_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each greedy divergence with its explanation."""
    if table.empty:
        return table
    return pd.DataFrame(
        {
            "method": table["method"].map(METHOD_NAMES),
            "γ": table["num_draft_tokens"],
            "row": table["row"],
            "position": table["position"],
            "lead with 1 token a pass (logits)": table["gap"].map("{:.3f}".format),
            "lead with γ + 1 (logits)": table["gap_together"].map("{:.3f}".format),
            "rounding bound": table["rounding_bound"].map("{:.3f}".format),
            "explained": table["explained"].map({True: "yes", False: "no"}),
        }
    )


def finding_greedy(greedy: pd.DataFrame, divergences: pd.DataFrame) -> str:
    """One sentence per precision."""
    parts = [
        f"In {dtype} {lines['equal_rows'].sum()} of {lines['rows'].sum()} greedy outputs equal the baseline's."
        for dtype, lines in greedy.groupby("dtype", sort=False)
    ]
    if len(divergences):
        parts.append(
            f"{divergences['explained'].sum()} of {len(divergences)} divergences are explained by rounding: the "
            f"largest lead of the baseline's token is {divergences['gap'].max():.3f} logits."
        )
    return " ".join(parts)


def finding_subjects(tests: pd.DataFrame) -> str:
    """One sentence on other people's samplers."""
    biased = sorted(tests.loc[tests["rejected"], "sampler"].unique())
    found = f"biased: {'; '.join(biased)}" if biased else "no bias was found"
    return (
        f"Of {tests['sampler'].nunique()} samplers of others, {found} (what could have been found stands beside each)."
    )
