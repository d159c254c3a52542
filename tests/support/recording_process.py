"""A kernel or a worker that runs steps as on a GPU: `python recording_process.py kernel|worker ...`.

Models run as Hugging Face wrote them, without the kernels of a CPU, and their steps are captured and replayed by
`recorded_steps.Recorder`. `kernel` is then what a notebook runs in, whose sweeps start this file as `worker`.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from quick_worker import hurry
from recorded_steps import Recorder

from specdec_lib.decoding import captured_loop
from specdec_lib.exactness import certify, mutant_battery
from specdec_lib.exactness.certificate import SOUND
from specdec_lib.machine import step_costs, stopwatch
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


def cut_certificate():
    """Few samples, and little of what does not depend on the pair: that has tests of its own."""
    effort = certify.QUICK
    certify.STANDARD = replace(effort, toy=1000, tiny=10, engines=("eager",), settings=effort.settings[:1])
    certify.FILTERS = certify.FILTERS[:2]
    systems, sampler, agreement = mutant_battery.systems, certify.engine_sampler, certify.greedy_agreement
    mutant_battery.systems = lambda pair: few(systems(pair))
    certify.engine_sampler = lambda *args, **more: sampler(*args, **more | {"batch_size": 96})
    fewer = {"num_draft_tokens": (2,), "max_new_tokens": 8}
    certify.greedy_agreement = lambda *args, **more: agreement(*args, **more | fewer)


def few(systems):
    """The sound sampler and two mutants."""
    mutants = [name for name in systems if name != SOUND]
    return {name: systems[name] for name in (SOUND, *mutants[:2])}


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
    from ipykernel import kernelapp

    run_sweep.__kwdefaults__["command"] = command("worker")
    cut_certificate()
    kernelapp.launch_new_instance()
