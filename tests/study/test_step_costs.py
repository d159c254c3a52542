"""The pieces of a step, timed over rows that are done."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from measured import measure_step_costs
from torch.utils._python_dispatch import TorchDispatchMode

from specdec_lib.analysis.statistics import median_interval
from specdec_lib.analysis.step_table import COLUMNS, StepTable, read_step_costs
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.decoding.step import BaselineStep, SpeculativeStep
from specdec_lib.machine import step_costs
from specdec_lib.machine.step_costs import write_step_costs
from specdec_lib.machine.stopwatch import Stopwatch
from specdec_lib.methods import METHODS, RULES, Method, make_proposer, pieces
from specdec_lib.models.pair import load_pair
from specdec_lib.params_files import load_params
from specdec_lib.study import machine_measurement as machine
from specdec_lib.study.machine_measurement import measure_machine
from specdec_lib.study.runner import BlockRunner


def measured(pair, *arguments, **options):
    return pd.DataFrame(measure_step_costs(pair, *arguments, **options))


@pytest.fixture(scope="module")
def costs():
    return measured(load_pair("toy"), [1, 2], [8], max_tokens=4, temperatures=(0.0, 1.0), repetitions=1)


def test_every_piece_is_there_at_every_point(costs):
    assert list(costs.columns) == COLUMNS
    counts = costs.groupby("model")["num_tokens"].agg(["min", "max", "size"])
    assert counts.loc["target"].tolist() == [1, 4, 16]
    assert counts.loc["sampling"].tolist() == [1, 4, 16]
    assert counts.loc["draft"].tolist() == [1, 3, 12]
    assert counts.loc["ngram"].tolist() == [1, 3, 12]
    assert (costs["ms"] > 0).all()


def test_what_is_written_is_read_back(costs, tmp_path):
    write_step_costs(tmp_path, costs.to_dict(orient="records"))
    assert read_step_costs(tmp_path).equals(costs)
    with pytest.raises(ValueError, match="make run"):
        read_step_costs(tmp_path / "elsewhere")


def test_a_point_that_does_not_fit_the_memory_is_left_out(monkeypatch):
    real = step_costs.step_pieces

    def too_large(pair, call, methods):
        if call.rows.batch_size > 1:
            raise torch.OutOfMemoryError("no memory for this")
        return real(pair, call, methods)

    monkeypatch.setattr(step_costs, "step_pieces", too_large)
    costs = measured(load_pair("toy"), [1, 2], [8], max_tokens=3, repetitions=2)
    target = costs[costs["model"] == "target"]
    assert target[target["batch_size"] == 1]["num_tokens"].tolist() == [1, 2, 3]
    assert target[target["batch_size"] == 2].empty


class Operators(TorchDispatchMode):
    """Notes every operator that runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gamma", [0, 3])
def test_the_pieces_are_the_step_operator_for_operator(gamma):
    """So that nothing of a step is left out of its pieces, and nothing else is in them."""
    pair = load_pair("toy")
    calls = [step_costs.call_of_done_rows(pair, Stopwatch(torch.device("cpu")), 2, 8, gamma + 1, 1.0) for _ in range(2)]
    step = BaselineStep(calls[0])
    if gamma:
        step = SpeculativeStep(calls[0], make_proposer("draft", pair), RULES["token"])
    with torch.inference_mode():
        step.start()
        calls[0].rows.max_length += 1
        pieces = step_costs.step_pieces(pair, calls[1], ["draft"])
        with Operators() as of_step:
            step()
        with Operators() as of_pieces:
            for piece in pieces.values():
                piece()
    assert of_pieces.seen == of_step.seen


def test_the_pieces_of_rows_that_are_done_move_nothing():
    pair = load_pair("toy")
    call = step_costs.call_of_done_rows(pair, Stopwatch(torch.device("cpu")), 2, 8, 4, 1.0)
    with torch.inference_mode():
        pieces = step_costs.step_pieces(pair, call, ["draft", "ngram"])
        assert list(pieces) == ["draft", "ngram", "target", "sampling"]
        for _ in range(2):
            for piece in pieces.values():
                piece()
    assert call.rows.lengths.tolist() == [9, 9]
    assert call.rows.done.all()


def test_a_method_of_ones_own_is_a_piece(monkeypatch):
    mine = Method("mine", "my lookup", "#000000", "x", lambda pair: NgramProposer(), ("mine",), capturable=True)
    monkeypatch.setitem(METHODS, "mine", mine)
    costs = measured(load_pair("toy"), [1], [8], max_tokens=2, methods=pieces(["mine"]), repetitions=1)
    assert set(costs["model"]) == {"mine", "target", "sampling"}


def table():
    rows = [
        ("target", 1, context, tokens, 10 + tokens + context / 100) for context in (100, 300) for tokens in (1, 5, 9)
    ]
    rows += [("draft", 1, 100, gamma, 1.5 * gamma) for gamma in (1, 4)]
    return StepTable(pd.DataFrame(rows, columns=["model", "batch_size", "context_tokens", "num_tokens", "ms"]))


def test_costs_are_interpolated_between_contexts_and_token_counts():
    assert table().ms("target", 1, 200, 1) == pytest.approx(13)
    assert table().ms("target", 1, 100, 3) == pytest.approx(14)


def test_what_was_not_measured_is_undefined():
    assert pd.isna(table().ms("target", 2, 100, 1))
    assert pd.isna(table().ms("target", 1, 100, 16))
    assert pd.isna(table().ms("ngram", 1, 100, 1))


def test_a_context_far_from_all_that_were_measured_is_undefined_and_a_near_one_has_the_nearest():
    """Measured at 100 and 300 tokens."""
    assert table().ms("target", 1, 450, 1) == table().ms("target", 1, 300, 1)
    assert table().ms("target", 1, 50, 1) == table().ms("target", 1, 100, 1)
    assert pd.isna(table().ms("target", 1, 451, 1))
    assert pd.isna(table().ms("target", 1, 49, 1))


def test_the_machine_is_measured_again_only_when_something_else_computes(tmp_path, monkeypatch):
    runner, written = BlockRunner(load_params("smoke"), tmp_path, load_pair("toy")), []
    monkeypatch.setattr(machine, "MAX_TOKENS", 2)
    monkeypatch.setattr(machine.step_costs, "write_step_costs", lambda folder, costs: written.append(costs))
    for software in ("kernels a", "kernels a", "kernels b"):
        runner.source = replace(runner.source, software=software)
        measure_machine(runner)
    assert len(written) == 2


def test_intervals_of_passes_are_known_at_every_batch_size(tmp_path, monkeypatch):
    """Of six times of each piece, as many as the interval of a median needs."""
    monkeypatch.setattr(machine, "MAX_TOKENS", 2)
    monkeypatch.setattr(machine, "SPARSE", (1,))
    params = load_params("smoke").model_copy(update={"num_draft_tokens": [1]})
    measure_machine(BlockRunner(params, tmp_path, load_pair("toy")))
    costs = read_step_costs(tmp_path)
    assert set(costs["batch_size"]) == {1, 2}
    assert all(
        low <= ms <= high
        for ms, (low, high) in zip(costs["ms"], map(median_interval, costs["samples_ms"]), strict=True)
    )


def test_a_context_without_room_for_the_steps_is_refused():
    pair = load_pair("toy")
    with pytest.raises(ValueError, match="exceed the context of"):
        measure_step_costs(pair, [1], [pair.draft.context_length - 1], max_tokens=1)


def test_a_failure_while_measuring_the_machine_is_printed_and_stops_only_that(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no such instruction")

    runner = BlockRunner(load_params("smoke"), tmp_path, load_pair("toy"))
    monkeypatch.setattr(machine, "_step_costs", fail)
    assert measure_machine(runner)
    assert "not measured: RuntimeError: no such instruction" in capsys.readouterr().out
    assert read_step_costs(tmp_path).empty
    assert measure_machine(runner), "it is tried again"
