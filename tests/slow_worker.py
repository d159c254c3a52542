"""A worker whose cells take their time, so that a test can be in the middle of one: otherwise as the real one."""

import sys
import time

from specdec_lib.measure import worker
from specdec_lib.measure.blocks import BlockRunner

if __name__ == "__main__":
    real = BlockRunner._decode

    def decode(self, *arguments, **keywords):
        time.sleep(0.15)
        return real(self, *arguments, **keywords)

    BlockRunner._decode = decode
    sys.exit(worker.main(sys.argv[1:]))
