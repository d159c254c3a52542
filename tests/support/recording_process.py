"""A kernel or a worker that runs steps as on a GPU: `python recording_process.py kernel|worker ...`.

Models run as Hugging Face wrote them, without the kernels of a CPU, and their steps are captured and replayed by
`machine.recorded_steps.Recorder`. `kernel` is then what a notebook runs in, whose sweeps start this file as `worker`.
"""

import os
import sys
from pathlib import Path

from quick_kernel import run_kernel
from quick_worker import hurry

from specdec_lib.decoding import captured_loop
from specdec_lib.exactness import certify
from specdec_lib.machine import step_costs, stopwatch
from specdec_lib.machine.recorded_steps import Recorder
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.study import machine_measurement
from specdec_lib.study.sweep import run_sweep
from specdec_lib.study.workers import worker


def record():
    """Capture the steps of every model from now on, on whatever device."""
    recorder = Recorder()
    captured_loop.CudaGraphs = lambda device: recorder
    captured_loop.why_not_captured = lambda target: getattr(target.kept, "failure", None)
    machine_measurement.MAX_TOKENS, stopwatch.REPLAYS = 3, 1
    step_costs.measure_step_costs.__defaults__ = (1,)
    KernelEngine.can_compute = staticmethod(lambda body: False)


def small_batches():
    """A step of the certificate is recorded operator by operator, which takes as much memory as the step."""
    sampler = certify.engine_sampler
    certify.engine_sampler = lambda *args, **more: sampler(*args, **more | {"batch_size": 96})


def command(kind):
    """What starts such a process."""
    return (sys.executable, str(Path(__file__).resolve()), kind)


if __name__ == "__main__":
    kind = sys.argv.pop(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    hurry()
    record()
    if kind == "worker":
        sys.exit(worker.main(sys.argv[1:]))
    run_sweep.__kwdefaults__["command"] = command("worker")
    small_batches()
    run_kernel()
