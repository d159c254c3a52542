"""`python toy_study.py ROOT ARGUMENTS...`: the command line on the study of `toy_sweep`, with one notebook: its sweep.

The worker is started with the command in the environment variable TOY_WORKER (JSON), else as `quick_worker`.
"""

import json
import os
import signal
import sys
from pathlib import Path

from quick_worker import QUICK
from toy_sweep import toy_params
from written_notebooks import write_notebook

from specdec_lib import __main__ as cli
from specdec_lib.cli import commands
from specdec_lib.report import pages

SWEEP = """
import json, os, pathlib
from specdec_lib.params_files import load_params
from specdec_lib.study import sweep
sweep.run_sweep(load_params(gpu, overrides), pathlib.Path(output_folder), command=json.loads(os.environ["TOY_WORKER"]))
"""

if __name__ == "__main__":
    os.environ.setdefault("TOY_WORKER", json.dumps(QUICK))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in whatever a shell runs in the background
    pages.NOTEBOOKS = Path(sys.argv[1]) / "notebooks"
    pages.STUDY = {"02_latency_sweep": "the sweep"}
    write_notebook(pages.NOTEBOOKS, "02_latency_sweep", SWEEP)
    commands.load_params = lambda *_: toy_params()
    sys.argv[:2] = ["specdec_lib"]
    cli.run_and_exit()
