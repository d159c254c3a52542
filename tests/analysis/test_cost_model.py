"""The cost model of a step: counts from configs, time from counts, and what a fit can and cannot see."""

import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from measured import calibrate
from synthetic_rows import synthetic_rows
from transformers import AutoConfig

from specdec_lib.analysis.cost_model.calibrated import AIM, CalibrationErrors, calibrated_machine, error_table, fit
from specdec_lib.analysis.cost_model.machine import Machine
from specdec_lib.hardware.catalog import load_models
from specdec_lib.machine.calibration import products
from specdec_lib.machine.calibration_file import Calibration, read_calibration, write_calibration
from specdec_lib.models.pair import load_pair
from specdec_lib.models.shape import ModelShape, known_shape
from specdec_lib.report.captions.comparison import finding_error

SHAPE = ModelShape("m", 10**9, 10**8, 20, 16, 4, 64, 1024, 50_000)
DRAFT = ModelShape("d", 10**8, 10**7, 2, 16, 4, 64, 1024, 50_000)
FITTED = ("decode_pass_seconds", "verify_pass_seconds", "draft_pass_seconds", "choose_seconds", "verify_seconds")


def roofline():
    """A machine of 1 TB/s and 100 TFLOP/s with 16-bit weights and no overhead."""

    def matrix_seconds(shape, rows):
        return max(shape.bytes_read(rows, 2) / 1e12, 2 * shape.weights_multiplied() * rows / 1e14)

    return Machine("m", matrix_seconds, 1e12, 1e14, 2.0)


@pytest.mark.parametrize("name", load_models())
def test_the_counted_weights_are_those_of_the_model_card(name):
    """All matrices and the embedding, if it is not the output layer too; norms are left out: below 1 % of a model.

    So are the towers that see, below 5 %.
    """
    model, shape = load_models()[name], replace(known_shape(name), quantised=None)
    assert (shape.embedding_weights == 0) == model.config["tie_word_embeddings"]
    assert shape.bytes_kept(1) == pytest.approx(model.parameters, rel=0.05 if "vision_config" in model.config else 0.01)


def test_a_pass_of_a_mixture_reads_the_experts_that_its_tokens_choose():
    """8 of 128 for one token, nearly all for 64; each token is multiplied with 8."""
    shape = known_shape("qwen3-30b-a3b")
    shared = shape.layer_weights - shape.expert_weights + shape.output_weights
    assert shape.bytes_read(1, 2) == pytest.approx(2 * (shared + shape.expert_weights / 16))
    assert shape.bytes_read(64, 2) == pytest.approx(2 * (shared + shape.expert_weights * (1 - (15 / 16) ** 64)))
    assert shape.weights_multiplied() == shared + shape.expert_weights / 16
    assert shape.weights_multiplied() / 1e9 == pytest.approx(3.0, abs=0.1)  # "A3B"


def test_quantised_weights_are_read_in_their_own_form():
    dense, fp8, awq, mixture = (known_shape(n) for n in ("qwen3-32b", "qwen3-32b-fp8", "qwen3-32b-awq", "gpt-oss-120b"))
    ends = 2 * (dense.output_weights + dense.embedding_weights)
    assert fp8.bytes_kept(2) == pytest.approx(ends + dense.layer_weights, rel=1e-3)
    assert awq.bytes_kept(2) == pytest.approx(ends + dense.layer_weights * 0.52, rel=2e-3)
    assert mixture.bytes_kept(2) / 1e9 == pytest.approx(65.2, abs=0.1)  # the checkpoint has 65.25 GB


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox", "gemma2"])
def test_any_hugging_face_config_has_a_shape(kind):
    shape = ModelShape.from_config(AutoConfig.for_model(kind, num_hidden_layers=1))
    assert shape.num_layers == 1
    assert shape.layer_weights > 0
    assert shape.output_weights == shape.vocab_size * shape.hidden_size or kind == "opt"


def test_one_token_costs_its_bytes_and_many_cost_their_operations():
    machine = roofline()
    assert machine.pass_(SHAPE, 1, 1, 0) == pytest.approx(2.2e-3)
    assert machine.pass_(SHAPE, 1, 16, 0) == pytest.approx(2.2e-3)  # 16 tokens ride along
    assert machine.pass_(SHAPE, 64, 16, 0) == pytest.approx(22.5e-3, rel=0.01)  # 1024 rows do not


def test_keys_and_values_of_a_long_context_are_read_too():
    """Once for all tokens of a row, while every token computes with them."""
    read = 8 * 10_000 * 2 * 20 * 4 * 64 * 2 / 1e12  # rows, context, keys and values, layers, heads, width, bytes
    computed = 8 * 10_000 * 2 * 20 * 16 * 64 * 2 / 1e14  # the same with all heads, multiplied and added
    for tokens in (1, 5):
        longer = roofline().pass_(SHAPE, 8, tokens, 10_000) - roofline().pass_(SHAPE, 8, tokens, 0)
        assert longer == pytest.approx(read + tokens * computed)


def test_a_draft_that_a_cache_holds_is_read_from_memory_once_a_step():
    warm = replace(roofline(), draft_matrix_seconds=lambda shape, rows: roofline().matrix_seconds(shape, rows) / 4)
    once = roofline().propose(DRAFT, 1, 1, 0)
    assert warm.propose(DRAFT, 1, 1, 0) == once
    again = roofline().matrix_seconds(DRAFT, 1)
    assert roofline().propose(DRAFT, 1, 5, 0) - warm.propose(DRAFT, 1, 5, 0) == pytest.approx(4 * again * 3 / 4)


def test_a_draft_of_fewer_bytes_is_read_sooner_but_never_sooner_than_from_a_cache():
    full, again = (roofline().propose(DRAFT, 1, 1, 0), roofline().matrix_seconds(DRAFT, 2))
    for share, from_cache, saved in ((0.5, 0.1, 0.5), (0.5, 0.8, 0.2)):
        short = replace(
            roofline(),
            draft_bytes=share,
            draft_matrix_seconds=lambda shape, rows, part=from_cache: roofline().matrix_seconds(shape, rows) * part,
        )
        assert full - short.propose(DRAFT, 1, 1, 0) == pytest.approx(saved * again)


def synthetic_calibration():
    """A machine of 50 GB/s whose products cost by the row."""
    rows = (1, 4, 16, 64, 128)
    return Calibration("m", "bfloat16", "now", 5e10, rows, tuple(4e-11 + 1e-12 * n for n in rows), SHAPE, DRAFT, False)


def synthetic_costs():
    """What an engine on that machine would measure that adds 3 ms to a pass, and up to 3.4 to one that verifies."""
    machine = calibrated_machine(synthetic_calibration())
    rows = []
    for batch in (1, 4):
        for tokens in range(1, 17):
            ms = {"target": machine.pass_(SHAPE, batch, tokens, 64) * 1e3 + 3 + 0.1 * min(tokens - 1, 4)}
            ms["sampling"] = machine.sampling(SHAPE, batch, tokens) * 1e3 + (0.4 if tokens == 1 else 0.7)
            ms["draft"] = machine.propose(DRAFT, batch, tokens, 64, 2) * 1e3 + 0.5 * (tokens + 1)
            rows += [(model, batch, 64, tokens, np.nan, value) for model, value in ms.items()]
    return pd.DataFrame(rows, columns=["model", "batch_size", "context_tokens", "num_tokens", "temperature", "ms"])


def test_a_fit_at_batch_1_and_one_gamma_finds_the_overhead_and_predicts_the_rest():
    costs = synthetic_costs()
    model = fit(synthetic_calibration(), costs, synthetic_rows(), num_draft_tokens=4)
    assert model.machine.decode_pass_seconds == pytest.approx(3e-3)
    assert model.machine.verify_pass_seconds == pytest.approx(3.4e-3)
    assert model.machine.draft_pass_seconds == pytest.approx(0.5e-3)
    assert model.propose(4, 8, 64) * 1e3 == pytest.approx(
        costs[(costs["model"] == "draft") & (costs["batch_size"] == 4) & (costs["num_tokens"] == 8)]["ms"].iloc[0]
    )


def test_what_the_engine_adds_grows_evenly_between_the_two_passes_that_were_fitted_and_no_more_beyond():
    machine = fit(synthetic_calibration(), synthetic_costs(), synthetic_rows(), num_draft_tokens=4).machine
    bare = replace(machine, decode_pass_seconds=0.0, verify_pass_seconds=0.0)
    added = [machine.pass_(SHAPE, 1, tokens, 64) - bare.pass_(SHAPE, 1, tokens, 64) for tokens in (1, 2, 3, 5, 16)]
    assert added == pytest.approx([3e-3, 3.1e-3, 3.2e-3, 3.4e-3, 3.4e-3])


def test_the_fit_looks_at_nothing_but_batch_1_and_one_gamma():
    """All other costs doubled, all other rows dropped: the same model."""
    costs, rows = synthetic_costs(), synthetic_rows()
    seen = (costs["batch_size"] == 1) & (
        costs["num_tokens"].isin([1, 5]) | ((costs["model"] == "draft") & (costs["num_tokens"] == 4))
    )
    others = costs.assign(ms=costs["ms"].where(seen, 2 * costs["ms"]))
    few = rows[(rows["batch_size"] == 1) & (rows["method"] == "autoregressive") & rows["prompt_tokens"].isna()]
    full, blind = (fit(synthetic_calibration(), *given, 4) for given in ((costs, rows), (others, few)))
    for name in FITTED:
        assert getattr(blind.machine, name) == pytest.approx(getattr(full.machine, name))
    assert blind.slowdown == full.slowdown


def test_costs_that_belong_to_other_points_are_not_predicted():
    """The known-bad twin: the same table with its measured passes shuffled. By luck, 1 of 32 points falls in place."""
    costs = synthetic_costs()
    model = fit(synthetic_calibration(), costs, synthetic_rows(), 4)
    target = costs["model"] == "target"
    shuffled = costs.copy()
    shuffled.loc[target, "ms"] = np.random.default_rng(0).permutation(costs.loc[target, "ms"])
    share = {}
    for name, table in (("as measured", costs), ("shuffled", shuffled)):
        errors = error_table(model, table, synthetic_rows())
        passes = errors[(errors["quantity"] == "verification pass") & (errors["sample"] == "out of sample")]
        share[name] = (passes["error"].abs() <= AIM).mean()
    assert share["as measured"] == 1
    assert share["shuffled"] < 0.5


def test_every_point_has_the_interval_of_its_measurement():
    """Nine times of a pass, 1 to 9 ms: their median is 5, and lies between the second and the eighth of them."""
    costs = synthetic_costs().assign(samples_ms=[[float(ms) for ms in range(1, 10)]] * len(synthetic_costs()))
    errors = error_table(fit(synthetic_calibration(), costs, synthetic_rows(), 4), costs, synthetic_rows())
    passes = errors[errors["quantity"] == "verification pass"]
    assert set(zip(passes["measured_ms_low"], passes["measured_ms_high"], strict=True)) == {(2, 8)}
    lines = errors[errors["quantity"] != "verification pass"]
    assert (lines["measured_ms_low"] < lines["measured_ms"]).all()
    assert (lines["measured_ms"] < lines["measured_ms_high"]).all()


def test_the_same_work_has_the_same_prediction_whatever_was_measured():
    """Of six calls of a setting, those of one prompt met a slow spell: they are off, not what was predicted."""
    rows = synthetic_rows()
    here = (rows["method"] == "autoregressive") & (rows["batch_size"] == rows["batch_size"].max())
    slowed = rows.assign(tpot_ms=rows["tpot_ms"].where(~(here & (rows["prompt_group"] == 0)), 1.5 * rows["tpot_ms"]))
    model = fit(synthetic_calibration(), synthetic_costs(), rows, 4)
    key = ["batch_size", "context_tokens", "temperature"]
    tables = [error_table(model, synthetic_costs(), each) for each in (rows, slowed)]
    before, after = (table[table["quantity"] == "baseline TPOT"].set_index(key) for table in tables)
    assert (after["measured_ms"] > before["measured_ms"] + 1e-6).any()
    assert after["predicted_ms"].to_numpy() == pytest.approx(before["predicted_ms"].to_numpy())


def test_the_error_table_says_what_the_fit_had_seen():
    costs = synthetic_costs()
    errors = error_table(fit(synthetic_calibration(), costs, synthetic_rows(), 4), costs, synthetic_rows())
    passes = errors[errors["quantity"] == "verification pass"]
    assert passes["error"].abs().max() < 1e-6
    assert passes[passes["sample"] == "fit"]["num_tokens"].tolist() == [1, 5]
    assert set(errors["quantity"]) == {"verification pass", "baseline TPOT", "speculative TPOT"}
    assert "are within 15%" in finding_error(CalibrationErrors(errors, 4))


def test_a_product_of_fewer_rows_that_seemed_dearer_is_taken_as_noise():
    calibration = synthetic_calibration()
    noisy = replace(calibration, matrix_seconds_per_weight=(4e-11, 9e-11, *calibration.matrix_seconds_per_weight[2:]))
    here, there = (calibrated_machine(c).pass_(SHAPE, 1, 4, 0) for c in (noisy, calibration))
    assert here == pytest.approx(there * 5.6e-11 / 4.4e-11, rel=0.01)  # no more than a product of 16 rows


def test_a_plain_draft_of_one_layer_is_no_head():
    """A head first reads all gamma + 1 tokens of the step before, a plain draft two: 8 rows cost more than 2."""
    plain = replace(synthetic_calibration(), draft=replace(DRAFT, num_layers=1))
    head = replace(plain, draft_is_head=True)
    of_plain, of_head = (fit(each, synthetic_costs(), synthetic_rows(), 4) for each in (plain, head))
    of_head = replace(of_head, machine=of_plain.machine)
    assert of_plain.propose(1, 7, 64) == of_plain.machine.propose(plain.draft, 1, 7, 64, 2)
    assert of_head.propose(1, 7, 64) > of_plain.propose(1, 7, 64)
    assert not calibrate(load_pair("toy"), rows=(1, 2)).draft_is_head


def test_a_calibration_that_does_not_tell_heads_apart_is_refused(tmp_path):
    write_calibration(tmp_path, synthetic_calibration())
    path = tmp_path / "calibration.json"
    path.write_text(path.read_text().replace("draft_is_head", "older"))
    with pytest.raises(ValueError, match="delete it and run the study again"):
        read_calibration(tmp_path)


def test_a_fit_without_its_measurements_is_refused():
    costs = synthetic_costs()
    with pytest.raises(ValueError, match="no step cost at batch 1"):
        fit(synthetic_calibration(), costs[costs["batch_size"] > 1], synthetic_rows(), 4)


def test_calibrating_a_toy_writes_what_reading_returns(tmp_path):
    calibration = calibrate(load_pair("toy"), rows=(1, 2, 4))
    assert calibration.read_bytes_per_second > 0
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration
    assert calibrated_machine(calibration).pass_(calibration.target, 1, 200, 10) > 0  # beyond what was measured


def test_products_are_timed_into_memory_that_is_used_again():
    """As in a pass: none is kept while the next is computed, so that the time is not that of getting new pages."""
    made = []

    def multiply(x, weight):
        assert all(product() is None for product in made)
        product = x @ weight.T
        made.append(weakref.ref(product))
        return product

    products([(torch.ones(4, 4),)] * 3, multiply, 2, torch.float32)()
    assert len(made) == 3
