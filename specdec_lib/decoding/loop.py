"""Run the steps of a call one by one until all rows are done."""

from __future__ import annotations

from specdec_lib.decoding.progress import Progress
from specdec_lib.decoding.step import Step


def run_steps(step: Step, progress: Progress) -> None:
    """Prefill, then steps; after each the host reads one report, which is the step's only synchronisation."""
    rows = step.call.rows
    step.start()
    while not progress.read(rows.report.tolist()):
        rows.max_length = progress.longest
        step()
