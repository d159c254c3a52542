"""What a run measures of its machine next to the rows: the costs of the pieces of a step, and a calibration.

The process that runs the sweep measures both after it, and again only if what determines them has changed.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

from specdec_lib.config import StudyParams
from specdec_lib.decoding.captured_loop import new_graphs
from specdec_lib.machine import calibration, calibration_file, step_costs
from specdec_lib.machine.stopwatch import Stopwatch
from specdec_lib.methods import pieces
from specdec_lib.models.pair import Pair
from specdec_lib.study.cells import NATURAL_PROMPT
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.workers import heartbeat

MAX_TOKENS = 16
KEY_FILE = "machine.key"  # a hash of what determined the two files
PROTOCOL = 5  # how they are measured: files of another protocol are measured again
SPARSE = (1, 2, 3, 5, 9, 16)  # tokens of a pass; between them costs are interpolated


def measure_machine(runner: BlockRunner) -> bool:
    """Write `calibration.json` and `step_costs.json`; False if those of this study are there.

    What cannot be measured is printed and left empty: the rows of the sweep stand without it. A target that is spread
    over several devices has costs of a step and no calibration, because the cost model describes one device.
    """
    folder, team = runner.folder, runner.team
    facts = (runner.source, runner.params.model_dump_json(), PROTOCOL)
    key, known = hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest(), folder / KEY_FILE
    if team.decide(lambda: known.exists() and known.read_text(encoding="utf-8") == key):
        return False
    if team.leads:
        known.unlink(missing_ok=True)
        heartbeat.write_heartbeat(folder, heartbeat.MACHINE, runner.run_id)
    print("measuring the machine: calibration and the costs of a step, a few minutes ...", flush=True)
    watch = Stopwatch(runner.pair.target.device, new_graphs(runner.pair.target))
    try:
        measured = calibration.calibrate(runner.pair, watch) if team.size == 1 else None
        costs = _step_costs(runner.params, runner.pair, watch)
    except Exception as error:  # noqa: BLE001 - out of memory or anything else
        reason = f"{type(error).__name__}: {error}"
        team.check(reason)
        leave_unmeasured(folder, reason)
        return True
    if team.leads:
        (folder / calibration_file.FILE).unlink(missing_ok=True)
        if measured:
            calibration_file.write_calibration(folder, measured)
        step_costs.write_step_costs(folder, costs)
        known.write_text(key, encoding="utf-8")
    return True


def leave_unmeasured(folder: Path, reason: str) -> None:
    """Leave calibration and costs of a step empty, and say why; where they are there, what came after them failed."""
    if (folder / KEY_FILE).exists():
        print(f"the transcripts were not written: {reason}", flush=True)
        return
    print(f"the costs of a step were not measured: {reason}", flush=True)
    (folder / calibration_file.FILE).unlink(missing_ok=True)
    step_costs.write_step_costs(folder, [])


def _step_costs(params: StudyParams, pair: Pair, watch: Stopwatch) -> list[step_costs.Row]:
    """All contexts and temperatures at the headline's batch size; fewer at the others, as the design crosses them.

    Contexts are those halfway through the first output, where the sweep's steps are on average.
    """
    room = min(pair.target.context_length, pair.draft.context_length) - 1 - MAX_TOKENS
    contexts = sorted({(tokens or NATURAL_PROMPT) + params.max_new_tokens[0] // 2 for tokens in params.prompt_tokens})
    contexts = [tokens for tokens in contexts if tokens <= room]
    first, *others = params.batch_sizes
    sparse = sorted({*SPARSE, *(gamma + 1 for gamma in params.num_draft_tokens if gamma < MAX_TOKENS)})
    crossed = contexts if params.design == "factorial" else contexts[:1]
    every = itertools.product([first], contexts, sparse, params.temperatures)
    some = itertools.product(others, crossed, sparse, params.temperatures[:1])
    return step_costs.measure_step_costs(pair, watch, pieces(params.methods), [*every, *some])
