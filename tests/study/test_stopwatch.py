"""Pieces of a step timed as rows ran them: by calling them, or on a GPU captured and replayed, which here is a fake."""

import pandas as pd
import pytest
import torch
from measured import calibrate, measure_step_costs
from synthetic_rows import step_costs as synthetic_costs
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis.cost_model.calibrated import fit
from specdec_lib.analysis.prediction import predicted_speedups
from specdec_lib.analysis.step_table import costs_of, read_step_costs, verification_costs, why_unused
from specdec_lib.analysis.waterfall import waterfall
from specdec_lib.machine.calibration_file import read_calibration, write_calibration
from specdec_lib.machine.recorded_steps import Recorder
from specdec_lib.machine.step_costs import write_step_costs
from specdec_lib.machine.stopwatch import REPLAYS, Stopwatch
from specdec_lib.models.pair import load_pair
from specdec_lib.report.captions.sweep import finding_waterfall

CPU = torch.device("cpu")
PARAMS = study(batch_sizes=[1], prompt_tokens=[0], max_new_tokens=[96], compare_transformers=False)
ROWS = synthetic_rows(PARAMS)


def costs_of_a_toy(**more):
    return pd.DataFrame(measure_step_costs(load_pair("toy"), [1, 2], [8], max_tokens=4, repetitions=1, **more))


def test_a_called_piece_runs_once_for_each_time():
    calls = []
    timer = Stopwatch(CPU).ready(lambda: calls.append(1))
    assert min(timer(), timer()) >= 0
    assert len(calls) == 2


def test_a_captured_piece_is_warmed_up_and_then_only_replayed():
    calls, number, recorder = [], torch.zeros(1), Recorder()

    def piece():
        calls.append(1)
        number.add_(1)

    timer = Stopwatch(CPU, recorder).ready(piece)
    assert (number.item(), len(calls)) == (1, 2)  # capturing runs nothing
    timer()
    assert (number.item(), len(calls)) == (1 + REPLAYS, 2)


def test_costs_of_replayed_steps_have_every_piece_and_say_so(recorder, tmp_path):
    costs = costs_of_a_toy()
    counts = costs.groupby("model")["num_tokens"].agg(["min", "max", "size"])
    assert counts.loc["target"].tolist() == [1, 4, 8]
    assert counts.loc["sampling"].tolist() == [1, 4, 8]
    assert counts.loc["draft"].tolist() == counts.loc["ngram"].tolist() == [1, 3, 6]
    assert costs["replayed"].all()
    assert (costs.loc[costs["model"] != "sampling", "ms"] > 0).all()
    assert recorder.captures == 2 * (2 + 3 * 4)  # at each batch size a pass and the rest, and two proposals of more
    write_step_costs(tmp_path, costs.to_dict(orient="records"))
    assert read_step_costs(tmp_path).equals(costs)


def test_files_that_do_not_say_called_all_pieces(tmp_path):
    costs = synthetic_costs().assign(samples_ms=None)
    write_step_costs(tmp_path, costs.drop(columns="replayed", errors="ignore").to_dict(orient="records"))
    assert not read_step_costs(tmp_path)["replayed"].any()


def test_a_calibration_is_captured_too_and_says_so(recorder, tmp_path):
    calibration = calibrate(load_pair("toy"), rows=(1, 2))
    assert calibration.replayed
    assert recorder.captures == 2 * 2 + 1  # products of target and draft; reading
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration


@pytest.mark.parametrize("timed", [False, True])
def test_costs_are_used_for_rows_that_ran_in_the_same_way_only(timed):
    costs = synthetic_costs().assign(replayed=timed)
    same, other = (ROWS.assign(replayed=ran) for ran in (timed, not timed))
    assert why_unused(costs, same) is None
    assert "Not used" in why_unused(costs, other)
    assert len(costs_of(same, costs)) == len(costs)
    assert costs_of(other, costs).empty
    assert verification_costs(costs, other).empty
    assert waterfall(same, costs)["unexplained"].notna().all()


def test_costs_of_called_pieces_enter_no_waterfall_and_no_cost_model_of_captured_rows():
    captured, costs = ROWS.assign(replayed=True), synthetic_costs()
    stages = waterfall(captured, costs)
    assert stages["unexplained"].isna().all()
    assert stages["by_position"].notna().all()
    finding = finding_waterfall(stages)
    assert "Not used: the pieces of a step were timed one operation at a time" in finding
    setting = {"method": "draft", "temperature": 0.0, "batch_size": 1, "prompt_tokens": None, "max_new_tokens": 96}
    counts = {"num_draft_tokens": 4, "accepted_tokens": 6, "tested_tokens": 10, "speedup": 1.5}
    assert predicted_speedups(pd.DataFrame([setting | counts]), costs, captured)["speedup"].isna().all()
    with pytest.raises(ValueError, match="Not used"):
        fit(calibrate(load_pair("toy"), rows=(1, 2)), costs, captured, 4)


def test_a_calibration_of_called_products_is_refused_though_the_costs_were_replayed():
    captured, costs = ROWS.assign(replayed=True), synthetic_costs().assign(replayed=True)
    with pytest.raises(ValueError, match="Not used"):
        fit(calibrate(load_pair("toy"), rows=(1, 2)), costs, captured, 4)
