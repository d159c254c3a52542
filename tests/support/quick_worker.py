"""A worker that measures its machine in a moment: most tests are not about what a pass costs, and that takes longest.

`python quick_worker.py ...` is `specdec_lib.study.workers.worker`, hurried.
"""

import sys
from pathlib import Path

from specdec_lib.machine import calibration, step_costs
from specdec_lib.study import machine_measurement as machine
from specdec_lib.study.workers import worker

QUICK = (sys.executable, str(Path(__file__)))


def hurry():
    """Time every piece once, on passes over few tokens, from now on in this process."""
    machine.MAX_TOKENS, machine.SPARSE = 5, (1, 2)
    step_costs.WARM_UP, step_costs.STEPS = 0, 1
    calibration.REPEATS, calibration.TIMED, calibration.WARM_UP = 1, 1, 0
    calibration.READ_BYTES = 2**22


if __name__ == "__main__":
    hurry()
    sys.exit(worker.main(sys.argv[1:]))
