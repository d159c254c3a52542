"""What a run measures of its machine next to the rows: the costs of the pieces of a step, and a calibration.

The process that runs the sweep measures both, and again only if what determines them has changed. The speed of a shared
machine changes from minute to minute, so a part of both is measured after each block of the sweep. Where steps are
captured on a GPU, all of it comes after the sweep, because the captures of the sweep must be dropped first.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from pathlib import Path

from specdec_lib.config import StudyParams
from specdec_lib.decoding.captured_loop import new_graphs
from specdec_lib.machine import calibration, calibration_file, step_costs
from specdec_lib.machine.calibration_file import Calibration
from specdec_lib.machine.stopwatch import Rounds, Stopwatch
from specdec_lib.methods import pieces
from specdec_lib.models.pair import Pair
from specdec_lib.study.cells import NATURAL_PROMPT, spread_evenly
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.schema import Row
from specdec_lib.study.workers import heartbeat

MAX_TOKENS = 16
KEY_FILE = "machine.key"  # a hash of what determined the two files
PROTOCOL = 3  # how they are measured: files of another protocol are measured again
SPARSE = (1, 2, 3, 5, 9, 16)  # tokens of a pass away from the headline's batch size


class MachineMeasurement:
    """Writes `calibration.json` and `step_costs.json`, unless those of this study are there.

    What cannot be measured is printed and left empty: the rows of the sweep stand without it. A target that is spread
    over several devices has costs of a step and no calibration, because the cost model describes one device.
    """

    def __init__(self, runner: BlockRunner):
        self.runner, self.params, self.pair = runner, runner.params, runner.pair
        facts = (runner.source, self.params.model_dump_json(), PROTOCOL)
        self.key = hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()
        known = runner.folder / KEY_FILE
        self.needed = runner.team.decide(lambda: not known.exists() or known.read_text(encoding="utf-8") != self.key)
        self.failed = False
        self.costs: Rounds[list[Row]] | None = None
        self.calibration: Rounds[Calibration] | None = None
        self.taken = 0

    def take(self, share: float) -> None:
        """Measure on until this share of everything is done; nothing yet where steps are captured."""
        if new_graphs(self.pair.target) is None:
            self._try(lambda: self._take(share))

    def finish(self) -> None:
        """Measure what is left, and write all of it."""
        self._try(self._finish)

    def _try(self, measure: Callable[[], None]) -> None:
        if self.failed or not self.needed:
            return
        runner = self.runner
        if runner.team.leads:
            heartbeat.write_heartbeat(runner.folder, heartbeat.MACHINE, runner.run_id)
        try:
            measure()
        except Exception as error:  # noqa: BLE001 - out of memory or anything else
            self.failed = True
            reason = f"{type(error).__name__}: {error}"
            runner.team.check(reason)
            leave_unmeasured(runner.folder, reason)

    def _take(self, share: float) -> None:
        """The rounds up to this share; those of calibration and of costs are each spread over the whole."""
        if self.costs is None:
            watch = Stopwatch(self.pair.target.device, new_graphs(self.pair.target))
            self.costs = _step_costs(self.params, self.pair, watch)
            if self.runner.team.size == 1:
                self.calibration = calibration.calibration_in_rounds(self.pair, watch)
        rounds = spread_evenly([each.rounds for each in (self.calibration, self.costs) if each])
        due = math.ceil(share * len(rounds))
        for one in rounds[self.taken : due]:
            one()
        self.taken = due

    def _finish(self) -> None:
        self._take(1.0)
        folder = self.runner.folder
        if self.costs is None or not self.runner.team.leads:
            return
        (folder / calibration_file.FILE).unlink(missing_ok=True)
        if self.calibration:
            calibration_file.write_calibration(folder, self.calibration.result())
        step_costs.write_step_costs(folder, self.costs.result())
        (folder / KEY_FILE).write_text(self.key, encoding="utf-8")


def leave_unmeasured(folder: Path, reason: str) -> None:
    """Leave calibration and costs of a step empty, and say why."""
    print(f"the costs of a step were not measured: {reason}", flush=True)
    for name in (calibration_file.FILE, KEY_FILE):
        (folder / name).unlink(missing_ok=True)
    step_costs.write_step_costs(folder, [])


def _step_costs(params: StudyParams, pair: Pair, watch: Stopwatch) -> Rounds[list[Row]]:
    """All token counts and contexts at the headline's batch size; some at the others, as the design crosses them.

    Contexts are those halfway through the first output, where the sweep's steps are on average.
    """
    room = min(pair.target.context_length, pair.draft.context_length) - 1 - MAX_TOKENS
    contexts = sorted({(tokens or NATURAL_PROMPT) + params.max_new_tokens[0] // 2 for tokens in params.prompt_tokens})
    contexts = [tokens for tokens in contexts if tokens <= room]
    first, *others = params.batch_sizes
    sparse = sorted({*SPARSE, *(gamma + 1 for gamma in params.num_draft_tokens if gamma < MAX_TOKENS)})
    crossed = contexts if params.design == "factorial" else contexts[:1]
    every = itertools.product([first], contexts, range(1, MAX_TOKENS + 1), params.temperatures)
    some = itertools.product(others, crossed, sparse, params.temperatures[:1])
    return step_costs.step_costs_in_rounds(pair, watch, pieces(params.methods), [*every, *some])
