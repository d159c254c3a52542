"""A worker that stops before cells at temperature 1 until a file appears: `python gated_worker.py FILE ...`.

Otherwise as the real one. So a test can be sure to meet it in the middle of its work.
"""

import sys
import time
from pathlib import Path

from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.workers import worker

if __name__ == "__main__":
    real = BlockRunner._decode

    def decode(self, cell, *arguments, **keywords):
        while cell.temperature == 1 and not Path(sys.argv[1]).exists():
            time.sleep(0.1)
        return real(self, cell, *arguments, **keywords)

    BlockRunner._decode = decode
    sys.exit(worker.main(sys.argv[2:]))
