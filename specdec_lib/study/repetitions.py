"""When a cell has been repeated often enough: a pure function of its rows so far.

The ratio of a cell is repeated until the 95 % interval of its mean over repetitions is narrower than a stated width, or
a stated number is reached: a fixed-width sequential interval (Chow and Robbins 1965). The rule looks at how far ratios
scatter, never at whether they favour anything, so that it does not shift their mean. Where it stops, ratios
happen to scatter little: the interval that it looks at then holds the truth somewhat less often than it says
(tests/test_repetitions.py has the figures), and is printed nowhere. The interval of a report is another one, over
prompts, which this rule never sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from specdec_lib.study.cell_files import Row

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Repetitions:
    """How often a cell is repeated.

    Attributes:
        least: always so often.
        most: never more often.
        width: of the interval, over the ratio, at which to stop between the two.
    """

    least: int
    most: int
    width: float

    def settled(self, baseline: Sequence[Row], rows: Sequence[Row]) -> bool:
        """Whether a cell with these rows needs no further repetition beside this baseline.

        A cell without ratios (nothing to compare with, or a single token) has nothing to wait for.
        """
        found = ratios(baseline, rows)
        return not found or not self.least <= len(found) < self.most or relative_width(found) <= self.width


def ratios(baseline: Sequence[Row], rows: Sequence[Row]) -> list[float]:
    """The baseline's TPOT over the cell's, for each repetition that both have from the same run."""
    before = {_when(row): float(str(row["tpot_ms"])) for row in baseline if row.get("tpot_ms")}
    return [
        before[_when(row)] / float(str(row["tpot_ms"])) for row in rows if row.get("tpot_ms") and _when(row) in before
    ]


def relative_width(found: Sequence[float]) -> float:
    """Full width of the t interval of the geometric mean, as a share of it; infinite for fewer than two ratios."""
    logs = np.log(np.asarray(found, dtype=np.float64))
    if len(logs) < 2:
        return float("inf")
    half = special.stdtrit(len(logs) - 1, (1 + CONFIDENCE) / 2) * logs.std(ddof=1) / np.sqrt(len(logs))
    return float(2 * np.sinh(half))


def _when(row: Row) -> tuple[object, object]:
    return row["run_id"], row["repetition"]
