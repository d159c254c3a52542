"""A kernel whose certificate takes few samples and whose sweeps measure their machine in a moment.

`python quick_kernel.py -f CONNECTION_FILE` is ipykernel, hurried. `kernels` makes notebooks that measure run in such a
process.
"""

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

from quick_worker import QUICK, hurry

from specdec_lib.exactness import adversaries, certify, mutant_battery
from specdec_lib.exactness.certificate import SOUND
from specdec_lib.study.sweep import run_sweep

MEASURING = ("01_correctness", "02_latency_sweep")
COMMAND = (sys.executable, str(Path(__file__).resolve()))


def kernels(patch, command=COMMAND):
    """Run the notebooks that measure in processes that this command starts, until `patch` is undone."""
    from specdec_lib.report import pages

    kernel = {"argv": [*command, "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    execute = pages.execute

    def execute_quickly(source, *arguments):
        if source.stem not in MEASURING:
            return execute(source, *arguments)
        started_so = mock.patch("ipykernel.kernelspec.get_kernel_dict", return_value=kernel)
        with started_so:
            return execute(source, *arguments)

    patch.setattr(pages, "execute", execute_quickly)


def cut_certificate():
    """Few samples, and little of what does not depend on the pair: that has tests of its own."""
    effort = certify.QUICK
    cut = replace(effort, toy=400, tiny=10, engines=("eager",), settings=effort.settings[:1])
    certify.QUICK = certify.STANDARD = cut
    certify.FILTERS = certify.FILTERS[:2]
    adversaries.ENGINE_SETTINGS = adversaries.ENGINE_SETTINGS[:1]
    mutant_battery.systems = few(mutant_battery.systems)
    agreement, fewer = certify.greedy_agreement, {"num_draft_tokens": (2,), "max_new_tokens": 8}
    certify.greedy_agreement = lambda *args, **more: agreement(*args, **more | fewer)


def few(systems):
    """The sound sampler and one mutant of those that `systems` makes."""

    def fewer(pair):
        made = systems(pair)
        return {name: made[name] for name in (SOUND, next(name for name in made if name != SOUND))}

    return fewer


def run_kernel():
    """Answer as ipykernel does, until it is shut down."""
    from ipykernel import kernelapp

    cut_certificate()
    kernelapp.launch_new_instance()


if __name__ == "__main__":
    hurry()
    run_sweep.__kwdefaults__["command"] = QUICK
    run_kernel()
