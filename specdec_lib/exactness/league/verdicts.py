"""Verdicts of the league: each line against its law, all lines together with few false alarms.

Holm's procedure keeps the chance that any exact line of the table is called biased below `FALSE_ALARM`. The size of a
bias is estimated from other samples than those that say where it is, so that chance does not inflate it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from specdec_lib.exactness.joint_law import JointTest, decide, joint_test
from specdec_lib.exactness.league.law import from_text
from specdec_lib.exactness.league.measure import results
from specdec_lib.exactness.league.subject import Line, Subject
from specdec_lib.exactness.league.tiny_models import LETTERS
from specdec_lib.exactness.league.verdict_names import BIASED, EXACT, GREEDY_ONLY, NOT_TESTED
from specdec_lib.exactness.target_law import Law

LEVEL = 0.05  # of the interval of a bias: each end is exceeded with half of it
DIRECTION = 0.5  # cosine from which on a bias points towards something


def league_table(subjects: Sequence[Subject], folder: Path) -> pd.DataFrame:
    """A line per line of the league, with its verdict.

    Returns:
        subject, kind, version, date, method, rule, setting, manual, num_draft_tokens, temperature, top_k, top_p;
        verdict and reason (why not tested); samples (over all prompts), seconds; p_value (the least, an upper bound),
        detectable_bias (total variation, at the least powerful position). Of a biased line: position (of the pair's
        first token, from 0), bias, bias_low and bias_high (total variation of the pairs there, with an interval of 95
        %), towards (what). report is a public one that knows a bias of this way.
    """
    measured = list(results(subjects, folder))
    tests = pd.DataFrame(
        [
            {"line": number, "position": position} | vars(joint_test(counts, laws))
            for number, (_, found) in enumerate(measured)
            for position, (counts, laws) in enumerate(_by_position(found))
        ],
        columns=["line", "position", *JointTest.__dataclass_fields__],
    )
    decided = decide(tests) if len(tests) else tests.assign(rejected=[], detectable_bias=[])
    of_line = dict(list(decided.groupby("line")))
    return pd.DataFrame([_row(line, found, of_line.get(number)) for number, (line, found) in enumerate(measured)])


def _by_position(found: dict[str, Any]) -> list[tuple[list[Law], list[Law]]]:
    """The counts and the law of each prompt, by position."""
    if not found.get("samples"):
        return []
    both = [_summed([half[prompt] for half in found["counts"]]) for prompt in range(len(found["law"]))]
    return [
        ([each[position] for each in both], [from_text(each[position]) for each in found["law"]])
        for position in range(len(both[0]))
    ]


def _summed(halves: Sequence[Sequence[dict[str, float]]]) -> list[Law]:
    """The counts of one prompt by position, of both halves together."""
    counts = []
    for parts in zip(*halves, strict=True):
        keys = {key for part in parts for key in part}
        counts.append(from_text({key: sum(part.get(key, 0.0) for part in parts) for key in keys}))
    return counts


def _row(line: Line, found: dict[str, Any], tests: pd.DataFrame | None) -> dict[str, object]:
    way, subject = line.way, line.subject
    row: dict[str, object] = {"subject": subject.name, "kind": subject.kind, "version": found.get("version")}
    row |= {"date": found.get("date"), "method": way.method, "rule": way.rule, "setting": way.setting}
    row |= {"manual": way.manual, "report": way.report, "num_draft_tokens": line.num_draft_tokens} | vars(line.sampling)
    if not line.sampling.temperature:
        return row | {"verdict": GREEDY_ONLY, "reason": "it samples by no draft, or not at all"}
    if tests is None:
        return row | {"verdict": NOT_TESTED, "reason": found.get("reason", "not run yet"), "samples": 0, "seconds": 0}
    row |= {"verdict": EXACT, "samples": int(tests["samples"].max()), "seconds": round(found["seconds"])}
    row |= {"p_value": tests["p_value"].min(), "detectable_bias": tests["detectable_bias"].max()}
    if not tests["rejected"].any():
        return row
    position = int(tests.loc[tests["p_value"].idxmin(), "position"])
    return row | {"verdict": BIASED, "position": position} | bias_at(found, position)


def bias_at(found: dict[str, Any], position: int) -> dict[str, object]:
    """How large the bias of the pairs at a position is, and towards what; see `league_table`."""
    laws = [from_text(each[position]) for each in found["law"]]
    where, size = ([from_text(each[position]) for each in half] for half in found["counts"])
    favoured = [
        {pair for pair in seen if seen[pair] / sum(seen.values()) > law.get(pair, 0.0)}
        for seen, law in zip(where, laws, strict=True)
    ]
    hits = sum(seen.get(pair, 0.0) for seen, each in zip(size, favoured, strict=True) for pair in each)
    due = float(np.mean([sum(law.get(p, 0.0) for p in each) for law, each in zip(laws, favoured, strict=True)]))
    n = sum(sum(seen.values()) for seen in size)
    low = float(stats.beta.ppf(LEVEL / 2, hits, n - hits + 1)) - due if hits else 0.0
    counts = _by_position(found)[position][0]
    return {
        "bias": max(hits / n - due, 0.0),
        "bias_low": max(low, 0.0),
        "bias_high": _most(counts, laws),
        "towards": _towards(counts, laws, [from_text(each[position]) for each in found.get("draft_law", ())]),
    }


def _most(counts: Sequence[Law], laws: Sequence[Law]) -> float:
    """Upper end: the distance of the shares seen, what chance adds to it at most, and what is left by McDiarmid."""
    total, apart, noise = sum(sum(seen.values()) for seen in counts), [], []
    for seen, law in zip(counts, laws, strict=True):
        n = sum(seen.values())
        shares = np.array([seen.get(pair, 0.0) / n for pair in {*seen, *law}])
        apart.append(np.abs(shares - np.array([law.get(pair, 0.0) for pair in {*seen, *law}])).sum() / 2)
        noise.append(np.sqrt(shares * (1 - shares) / n).sum() / 2)
    return float(min(np.mean(apart) + np.mean(noise) + np.sqrt(np.log(2 / LEVEL) / (2 * total)), 1.0))


def _towards(counts: Sequence[Law], laws: Sequence[Law], drafts: Sequence[Law]) -> str:
    """The draft's law if the change points there, or the opposite way; and the pairs that change most."""
    moved: list[tuple[float, str]] = []
    change, direction = [], []
    for prompt, (seen, law) in enumerate(zip(counts, laws, strict=True)):
        n = sum(seen.values())
        for pair in sorted({*seen, *law}):
            more = seen.get(pair, 0.0) / n - law.get(pair, 0.0)
            moved.append((more, _letters(pair)))
            change.append(more)
            direction.append(drafts[prompt].get(pair, 0.0) - law.get(pair, 0.0) if drafts else 0.0)
    cosine = float(np.dot(change, direction) / (np.linalg.norm(change) * np.linalg.norm(direction) or 1.0))
    what = "the draft; " if cosine > DIRECTION else "away from the draft; " if cosine < -DIRECTION else ""
    (least, fewer), (most, more_of) = min(moved), max(moved)
    return f"{what}{more_of} {most:+.3f}, {fewer} {least:+.3f}"


def _letters(pair: tuple[int, ...]) -> str:
    return "".join(LETTERS[token] if 0 <= token < len(LETTERS) else "?" for token in pair)
