"""The short profile of a pair on a machine: the costs of the pieces of a step, and the expected acceptance."""

from __future__ import annotations

from pathlib import Path

from specdec_lib.config import StudyParams
from specdec_lib.machine.files import locked, writing
from specdec_lib.models.pair import load_study_pair
from specdec_lib.study.machine_measurement import measure_machine
from specdec_lib.study.offline import FILE, measure_acceptance
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.workers import heartbeat


def measure_profile(runner: BlockRunner) -> bool:
    """Write what is missing of a run's profile; whether its machine was measured anew."""
    anew = measure_machine(runner)
    if anew or not (runner.folder / FILE).exists():
        measure_acceptance(runner)
    return anew


def make_profile(params: StudyParams, folder: Path) -> None:
    """Measure the profile of a study into `folder`, without its sweep, which will find it there.

    Raises:
        ValueError: the pair cannot be loaded, or another run is at work in `folder`.
        RuntimeError: the folder cannot be written.
    """
    from specdec_lib.study.sweep import LOCK  # loads pandas, which no worker needs

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, LOCK):
            measure_profile(BlockRunner(params, folder, load_study_pair(params)))
            heartbeat.remove_heartbeat(folder)
