"""`python toy_study.py ROOT ARGUMENTS...`: the command line on the study of `toy_sweep`, with one notebook: its sweep.

The worker is started with the command in the environment variable TOY_WORKER (JSON), else as `quick_worker`.
"""

import json
import os
import signal
import sys
from pathlib import Path

from quick_worker import QUICK
from test_report import write_notebook
from toy_sweep import toy_params

from specdec_lib import __main__ as cli
from specdec_lib.cli import commands
from specdec_lib.report.pages import pages as report

SWEEP = """
import json, os, pathlib
from specdec_lib.config import StudyParams, validate_params
from specdec_lib.study import sweep
params = validate_params({key: globals()[key] for key in StudyParams.model_fields}, "the notebook")
sweep.run_sweep(params, pathlib.Path(output_folder), command=json.loads(os.environ["TOY_WORKER"]))
"""

if __name__ == "__main__":
    os.environ.setdefault("TOY_WORKER", json.dumps(QUICK))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in whatever a shell runs in the background
    notebooks = Path(sys.argv[1]) / "notebooks"
    write_notebook(notebooks, "02_latency_sweep", SWEEP)
    real = report.run_notebooks
    report.run_notebooks = lambda params, root: real(params, root, notebooks)
    commands.load_params = lambda *_: toy_params()
    sys.argv[:2] = ["specdec_lib"]
    cli.run_and_exit()
