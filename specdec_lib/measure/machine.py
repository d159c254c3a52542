"""What a run keeps about its machine beside the rows of the sweep: the cost of each piece of a step, and a calibration.

Both are measured after the sweep by the process that ran it, and again only if what determines them has changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from specdec_lib.config import StudyParams
from specdec_lib.measure import calibration, step_costs
from specdec_lib.measure.team import Team, first_failure
from specdec_lib.models.pair import Pair

NATURAL_PROMPT = 128  # tokens that stand for prompts as they are: about the mean of the set "mixed"
MAX_TOKENS = 16
KEY_FILE = "machine.key"  # a hash of what determined the two files
SPARSE = (1, 2, 3, 5, 9, 16)  # tokens of a pass away from the headline's batch size


def measure_machine(params: StudyParams, pair: Pair, folder: Path, source: object, team: Team) -> None:
    """Write `calibration.json` and `step_costs.json` into `folder`, unless those of this `source` and params are there.

    What cannot be measured is printed and left empty: the rows of the sweep stand without it. A target that is spread
    over several devices has costs of a step and no calibration: the cost model knows of one device.
    """
    key = hashlib.sha256(f"{source} {params.model_dump_json()}".encode()).hexdigest()
    known = folder / KEY_FILE
    if team.decide(lambda: known.exists() and known.read_text(encoding="utf-8") == key):
        return
    failure = None
    try:
        if team.size == 1:
            calibration.write_calibration(folder, calibration.calibrate(pair))
        costs = _step_costs(params, pair)
    except Exception as error:  # noqa: BLE001 - out of memory or anything else
        failure = f"{type(error).__name__}: {error}"
    failure = first_failure(team.share(failure, failure))
    if not team.leads:
        return
    if failure:
        leave_unmeasured(folder, failure)
        return
    if team.size > 1:
        (folder / calibration.FILE).unlink(missing_ok=True)
    step_costs.write_step_costs(folder, costs)
    known.write_text(key, encoding="utf-8")


def leave_unmeasured(folder: Path, reason: str) -> None:
    """Leave the costs of a step empty, and say why."""
    print(f"the costs of a step were not measured: {reason}", flush=True)
    step_costs.write_step_costs(folder, pd.DataFrame(columns=step_costs.COLUMNS))


def _step_costs(params: StudyParams, pair: Pair) -> pd.DataFrame:
    """All token counts and contexts at the headline's batch size; some at the others, as the design crosses them.

    Contexts are those halfway through the first output, where the sweep's steps are on average.
    """
    contexts = sorted({(tokens or NATURAL_PROMPT) + params.max_new_tokens[0] // 2 for tokens in params.prompt_tokens})
    room = pair.target.context_length - step_costs.STEPS - MAX_TOKENS - 2
    contexts = [tokens for tokens in contexts if tokens <= room]
    first, *others = params.batch_sizes
    sparse = sorted({*SPARSE, *(gamma + 1 for gamma in params.num_draft_tokens if gamma < MAX_TOKENS)})
    temperatures = params.temperatures
    crossed = contexts if params.design == "factorial" else contexts[:1]
    tables = [step_costs.measure_step_costs(pair, [first], contexts, MAX_TOKENS, temperatures=temperatures)]
    if others:
        tables.append(
            step_costs.measure_step_costs(
                pair, others, crossed, token_counts=sparse, temperatures=temperatures[:1], repetitions=2
            )
        )
    return pd.concat(tables, ignore_index=True)
