"""What the advisor says, in sentences."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.advice import EVERY_KIND, summary
from specdec_lib.analysis.second_candidate import WORTH
from specdec_lib.methods import label
from specdec_lib.report.captions.phrases import span, temperature_name

NO_PROFILE = "This run has no profile: expected acceptance or the costs of a step were not measured."
NO_REGRET = "The advice could not be compared: no setting of this sweep was both expected and measured."
NO_SECOND = "Of this run's draft nothing is known of second candidates."
NO_AGREEMENT = "Expected and measured acceptance could not be compared."


def finding_advice(advised: pd.DataFrame) -> str:
    """What to set for all kinds of text at the smallest batch and context, per temperature; from `advice.advise`."""
    whole = advised[advised["category"] == EVERY_KIND].sort_values(["batch_size", "context_tokens"], kind="stable")
    if whole.empty:
        return NO_PROFILE
    sentences = []
    for line in whole.drop_duplicates("temperature").sort_values("temperature").itertuples():
        best = f"{label(line.method)} with γ = {line.num_draft_tokens}"
        expected = f"expected speedup {line.speedup:.2f}× ({line.speedup_low:.2f} to {line.speedup_high:.2f})"
        what = f"set {best}, {expected}" if line.on else f"leave speculation off; the best is {best}, {expected}"
        sentences.append(f"At batch {line.batch_size}, {temperature_name(line.temperature)}: {what}.")
    on = f"Of all {len(advised)} cells it is on in {int(advised['on'].sum())}."
    return " ".join([*sentences, on])


def finding_regret(cells: pd.DataFrame) -> str:
    """Mean and worst loss by following the advice, and whether it ever speculates at a loss; from `advice.regrets`."""
    if cells.empty:
        return NO_REGRET
    numbers = summary(cells)
    worst = cells.loc[cells["regret"].idxmax()]
    where = f"{worst['category']}, {temperature_name(worst['temperature'])}, batch {worst['batch_size']}"
    wrong = int(numbers["wrong"])
    slow = f"in {wrong} cells the sweep measured a slowdown" if wrong else "nowhere did the sweep measure a slowdown"
    return (
        f"Following the advice loses {numbers['mean']:.1%} of speed on average over {len(cells)} cells and "
        f"{numbers['worst']:.1%} at worst ({where}), against the best measured setting. Each prompt is advised "
        f"from the profiles of the others. Where it speculates, {slow} beyond its interval."
    )


def finding_agreement(lines: pd.DataFrame) -> str:
    """In how many cells expected and measured acceptance agree; from `acceptance.agreement`."""
    known = lines[lines["agrees"].notna()]
    if known.empty:
        return NO_AGREEMENT
    agreeing = f"{int(known['agrees'].sum())} of {len(known)}"
    return f"Expected and measured acceptance agree in {agreeing} cells (95 % intervals overlap)."


def finding_second_candidate(lines: pd.DataFrame, gpu: str) -> str:
    """Where a second candidate is expected to pay; from `second_candidate.gains_with_presets`.

    Args:
        gpu: of the run; the other lines are of GPU presets.
    """
    own, others = lines[lines["gpu"] == gpu], lines[(lines["gpu"] != gpu) & (lines["batch_size"] == 1)]
    here = NO_SECOND
    if len(own):
        worth = int((own["gain"] >= WORTH).sum())
        here = (
            f"On {gpu} a second candidate is expected to make decoding at least {WORTH - 1:.0%} faster in {worth} of "
            f"{len(own)} places; its speed is {span(own['gain'])} times that of the best single chain."
        )
    names = ", ".join(others["gpu"])
    return f"{here} At batch 1 the cost model predicts {span(others['gain'])} times for {names}."
