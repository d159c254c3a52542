"""A worker that real faults befall: `python faulty_worker.py FAULTS ...`, then as the worker itself.

FAULTS is JSON: for the name of a cell, what happens to the process when it decodes it; for "machine", what happens when
it measures the machine.
"""

import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch
from quick_worker import hurry

from specdec_lib.machine import calibration
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.workers import worker


def killed():
    os.kill(os.getpid(), signal.SIGKILL)  # what the kernel's out-of-memory killer does


def segfault():
    ctypes.string_at(0)


def hang():
    ctypes.PyDLL(None).pause()  # in native code, and with Python's lock held: no other thread runs any more


def out_of_memory():
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, unlimited[1]))
    try:
        torch.ones(2**26)  # 256 MB where 64 are left
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)


def second_killed():
    if os.environ["RANK"] == "1":
        killed()


ALL = (killed, segfault, hang, out_of_memory, second_killed)
FAULTS = {fault.__name__: fault for fault in ALL}


def befall(faults):
    """Let `faults` happen, each in its place."""
    real = BlockRunner._decode

    def decode(self, cell, *arguments, **keywords):
        if fault := faults.get(str(cell)):
            FAULTS[fault]()
        return real(self, cell, *arguments, **keywords)

    BlockRunner._decode = decode
    if fault := faults.get("machine"):
        calibration.calibrate = lambda *_: FAULTS[fault]()


if __name__ == "__main__":
    faulthandler.enable()
    hurry()
    befall(json.loads(sys.argv[1]))
    sys.exit(worker.main(sys.argv[2:]))
