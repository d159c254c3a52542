"""Runs side by side: what may stand together, where speculation stops paying, and what is cheapest."""

import json

import numpy as np
import pytest
from measured import calibrate, measure_step_costs
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis import comparison, metrics
from specdec_lib.analysis.cost_model.calibrated import calibrated_errors
from specdec_lib.analysis.sweep.crossover import all_crossovers, measured_crossovers, predicted_crossovers
from specdec_lib.machine.calibration_file import write_calibration
from specdec_lib.machine.step_costs import write_step_costs
from specdec_lib.models.pair import load_pair
from specdec_lib.params_files import available_params, load_params
from specdec_lib.report.captions import comparison as captions
from specdec_lib.report.captions.cost import finding_pareto
from specdec_lib.report.captions.phrases import where_it_pays
from specdec_lib.report.captions.sweep import finding_crossover
from specdec_lib.report.figures import comparison as comparison_plots
from specdec_lib.report.tables import comparison as comparison_tables
from specdec_lib.report.tables.sweep import crossover_table

PARAMS = study()
A100 = {"product": "a100-sxm-80", "power_limit_watts": 400.0, "default_power_limit_watts": 400.0}


def write_run(outputs, gpu="synthetic", params=PARAMS, change=None, cuda=None):
    """A finished run below `outputs`; `change` edits its rows."""
    folder = outputs / gpu
    folder.mkdir(parents=True)
    rows = synthetic_rows(params)
    if change:
        change(rows)
    rows.to_parquet(folder / "results.parquet")
    facts = {"params": params.model_dump() | {"gpu": gpu}, "cuda": cuda}
    (folder / "environment.json").write_text(json.dumps(facts))
    return folder


def set_last(column, value):
    def change(rows):
        rows.loc[rows.index[-1], column] = value

    return change


def test_runs_are_found_and_toys_are_not_among_them(tmp_path):
    write_run(tmp_path, "one")
    write_run(tmp_path, "smoke")
    assert [run.params.gpu for run in comparison.find_runs(tmp_path)] == ["one"]
    assert [run.params.gpu for run in comparison.find_runs(tmp_path, ["smoke"])] == ["smoke"]


@pytest.mark.parametrize(("column", "value"), [("device_name", "another"), ("pair", "another"), ("dtype", "float16")])
def test_a_folder_of_two_products_or_settings_is_refused_by_row(tmp_path, column, value):
    folder = write_run(tmp_path, change=set_last(column, value))
    cell = synthetic_rows(PARAMS)["cell_id"].iloc[-1]
    with pytest.raises(ValueError, match=f"synthetic: row {cell} has {column} '{value}'"):
        comparison.read_run(folder)


def test_runs_of_two_benchmark_versions_are_refused_by_row(tmp_path):
    write_run(tmp_path, "new", change=lambda rows: rows.__setitem__("benchmark_version", 2))
    write_run(tmp_path, "old")
    with pytest.raises(ValueError, match=r"version 1: old row \w+, version 2: new row \w+"):
        comparison.find_runs(tmp_path)


def test_a_price_of_another_product_is_refused(tmp_path):
    params = study(device="cuda", price="lambda-h100")
    folder = write_run(tmp_path, params=params, cuda=A100)
    with pytest.raises(ValueError, match="price lambda-h100 is of h100-sxm, but the run was on a100-sxm-80"):
        comparison.read_run(folder)


def test_a_changed_power_limit_is_part_of_the_products_name(tmp_path):
    params = study(device="cuda", price="runpod-a100-80")
    limited = write_run(tmp_path, params=params, cuda=A100 | {"power_limit_watts": 330.0})
    assert comparison.read_run(limited).product == "a100-sxm-80 at 330 W"


def test_side_by_side_says_what_is_measured_and_what_predicted(tmp_path):
    write_run(tmp_path)
    runs = comparison.find_runs(tmp_path)
    presets = comparison.absent_presets(runs)
    assert [params.gpu for params in presets] == [n for n in available_params() if load_params(n).device == "cuda"]
    table = comparison.headlines(runs, presets)
    evidence = table.groupby("gpu")["evidence"].unique()
    assert evidence["synthetic"].tolist() == ["measured"]
    assert evidence["h100"].tolist() == ["predicted"]
    assert "Measured: synthetic on synthetic machine" in captions.sources(runs, presets)
    readable = comparison_tables.headlines_table(table)
    assert set(readable["evidence"]) == {"measured", "predicted"}
    assert (readable.loc[readable["study"] == "synthetic", "energy (J/token)"] == "–").all()


def falling_speedup(rows):
    """Make the speculative TPOT such that the speedup is 2 at batch 1, 1.25 at 2, and 0.5 at 4, give or take 1 %."""
    speedup = {1: 2.0, 2: 1.25, 4: 0.5}
    noise = np.random.default_rng(0).uniform(0.99, 1.01, len(rows))
    ratio = [
        1.0 if m == "autoregressive" else speedup[b] for m, b in zip(rows["method"], rows["batch_size"], strict=True)
    ]
    rows["tpot_ms"] = 20 / np.array(ratio) * noise


def test_the_crossover_is_interpolated_where_the_speedup_falls_to_1(tmp_path):
    rows = synthetic_rows(PARAMS)
    falling_speedup(rows)
    lines = measured_crossovers(rows)
    expected = 2 ** (1 + np.log(1.25) / (np.log(1.25) - np.log(0.5)))
    assert np.allclose(lines["crossover_batch"], expected, rtol=0.02)
    assert (lines["crossover_batch_low"] <= lines["crossover_batch"]).all()
    assert (lines["crossover_batch"] <= lines["crossover_batch_high"]).all()
    assert set(lines["num_draft_tokens"]) == {PARAMS.headline_num_draft_tokens}


def test_a_curve_that_stays_on_one_side_has_no_crossover_and_says_so():
    rows = synthetic_rows(PARAMS)
    falling_speedup(rows)
    rows.loc[rows["method"] == "draft", "tpot_ms"] /= 10
    rows.loc[rows["method"] == "ngram", "tpot_ms"] *= 10
    lines = measured_crossovers(rows).set_index("method")
    assert lines["crossover_batch"].isna().all()
    assert {where_it_pays(line) for line in lines.loc["draft"].itertuples()} == {"up to batch 4, the largest tried"}
    assert {where_it_pays(line) for line in lines.loc["ngram"].itertuples()} == {"at no batch from 1 to 4"}


def test_a_curve_that_rises_above_1_later_is_not_said_to_pay_nowhere():
    rows = synthetic_rows(PARAMS)
    falling_speedup(rows)
    rows.loc[(rows["method"] != "autoregressive") & (rows["batch_size"] == 1), "tpot_ms"] *= 4
    assert set(measured_crossovers(rows)["outcome"]) == {"later"}


def test_batches_that_do_not_fit_are_in_no_predicted_crossover():
    (h100,) = (params for params in comparison.absent_presets([], ["h100"]))
    lines = comparison.predicted_lines([h100], comparison.BATCHES)
    assert not lines["fits"].all()
    largest = lines[lines["fits"] & (lines["num_draft_tokens"] == 4)].groupby("prompt_tokens", dropna=False)
    found = predicted_crossovers(lines)
    found = found[found["num_draft_tokens"] == 4].groupby("prompt_tokens", dropna=False)["largest_batch"].max()
    assert found.tolist() == largest["batch_size"].max().tolist()


def test_every_figure_of_the_comparison_draws_with_evidence_in_its_title(tmp_path):
    write_run(tmp_path)
    runs = comparison.find_runs(tmp_path)
    presets = comparison.absent_presets(runs, ["a100"])
    predicted = comparison.predicted_lines(presets, [1, 64, 512])
    measured = [measured_crossovers(run.rows, run.params.gpu) for run in runs]
    crossovers = all_crossovers([*measured, predicted_crossovers(predicted)])
    lines = comparison.pareto(comparison.settings(runs, presets))
    assert "(measured, predicted)" in comparison_plots.crossover_figure(crossovers).get_suptitle()
    assert "(measured, predicted)" in comparison_plots.pareto_figure(lines).get_suptitle()
    assert "stops paying within the batch sizes tried" in finding_crossover(crossovers)
    assert "speculate" in finding_pareto(lines)
    assert set(crossover_table(crossovers)["evidence"]) == {"measured", "predicted"}


def test_the_front_holds_what_no_other_setting_for_the_same_work_beats_in_both(tmp_path):
    write_run(tmp_path)
    lines = comparison.pareto(comparison.settings(comparison.find_runs(tmp_path), []))
    assert lines["prompt_tokens"].isna().all()
    assert set(lines["max_new_tokens"]) == {48}
    for _, same in lines.groupby("temperature"):
        for line in same.itertuples():
            cheaper = same["usd_per_million_tokens"] < line.usd_per_million_tokens
            assert not (line.on_front and (cheaper & (same["tpot_ms"] < line.tpot_ms)).any())


def test_too_few_prompts_give_a_crossover_without_a_band():
    rows = synthetic_rows(study(num_prompts=4))
    falling_speedup(rows)
    lines = measured_crossovers(rows)
    assert lines["crossover_batch"].notna().all()
    assert lines[["crossover_batch_low", "crossover_batch_high"]].isna().all().all()


def test_break_even_lies_between_the_ratios_of_bandwidth_and_of_operations():
    table = comparison.break_even(load_params("h100"), "a100-sxm-80", "h100-sxm").set_index("vendor")
    assert table.loc["AWS", "ratio"] == pytest.approx(6.88 / 3.43)
    assert table["break_even"].between(1, 989 / 312).all()
    assert table["break_even_without"].between(1, 989 / 312).all()
    readable = comparison_tables.break_even_table(table.reset_index())
    assert set(readable["evidence"]) == {"predicted"}
    assert "2026-11-09" in set(readable["read on"])


def test_a_run_without_calibration_says_so_and_one_with_it_lists_its_errors(tmp_path):
    folder = write_run(tmp_path)
    assert "is missing" in calibrated_errors(comparison.read_run(folder)).why_missing
    toy = load_pair("toy")
    write_calibration(folder, calibrate(toy, rows=(1, 2, 4)))
    write_step_costs(folder, measure_step_costs(toy, [1], [8], max_tokens=7, repetitions=1))
    errors = calibrated_errors(comparison.read_run(folder))
    assert captions.finding_error(errors).startswith("Fitted with γ = 6.")
    assert {"verification pass", "baseline TPOT"} <= set(errors.table["quantity"])
    assert "measured (ms)" in comparison_tables.error_columns(errors.table)


def test_throttled_rows_never_reach_the_comparison(tmp_path):
    folder = write_run(tmp_path, change=lambda rows: rows.__setitem__("throttled", True))
    assert metrics.speedups(comparison.read_run(folder).rows).empty
