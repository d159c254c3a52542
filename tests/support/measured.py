"""All rounds of a measurement of the machine at once, as pieces are timed on the device of a pair."""

import itertools

from specdec_lib.decoding.captured_loop import new_graphs
from specdec_lib.machine.calibration import MATRIX_ROWS, calibration_in_rounds
from specdec_lib.machine.step_costs import REPETITIONS, step_costs_in_rounds
from specdec_lib.machine.stopwatch import Stopwatch


def whole(measurement):
    for one in measurement.rounds:
        one()
    return measurement.result()


def watch_of(pair):
    return Stopwatch(pair.target.device, new_graphs(pair.target))


def calibrate(pair, rows=MATRIX_ROWS):
    return whole(calibration_in_rounds(pair, watch_of(pair), rows))


def measure_step_costs(
    pair,
    batch_sizes,
    contexts,
    max_tokens=16,
    *,
    methods=("draft", "ngram"),
    temperatures=(1.0,),
    repetitions=REPETITIONS,
):
    """The rows of `step_costs.json`, at every batch size and context."""
    points = list(itertools.product(batch_sizes, contexts, range(1, max_tokens + 1), temperatures))
    return whole(step_costs_in_rounds(pair, watch_of(pair), methods, points, repetitions))
