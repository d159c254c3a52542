"""Measurements of the machine, as pieces are timed on the device of a pair."""

import itertools

from specdec_lib.decoding.captured_loop import new_graphs
from specdec_lib.machine import calibration, step_costs
from specdec_lib.machine.stopwatch import Stopwatch


def watch_of(pair):
    return Stopwatch(pair.target.device, new_graphs(pair.target))


def calibrate(pair, rows=calibration.MATRIX_ROWS):
    return calibration.calibrate(pair, watch_of(pair), rows)


def measure_step_costs(
    pair,
    batch_sizes,
    contexts,
    max_tokens=16,
    *,
    methods=("draft", "ngram"),
    temperatures=(1.0,),
    repetitions=step_costs.REPETITIONS,
):
    """The rows of `step_costs.json`, at every batch size and context."""
    points = list(itertools.product(batch_sizes, contexts, range(1, max_tokens + 1), temperatures))
    return step_costs.measure_step_costs(pair, watch_of(pair), methods, points, repetitions)
