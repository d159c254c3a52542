"""The cost model of a step: counts from configs, time from counts, and what a fit can and cannot see."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from transformers import AutoConfig

from specdec_lib.analysis.calibration_error import error_table, finding_error, fit
from specdec_lib.analysis.cost_model import BYTES, Machine, calibrated_machine, speculative_step
from specdec_lib.hardware.catalog import load_models
from specdec_lib.measure.calibration import Calibration, calibrate, read_calibration, write_calibration
from specdec_lib.models.pair import load_pair
from specdec_lib.models.shape import ModelShape, known_shape

SHAPE = ModelShape("m", 10**9, 10**8, 0, 0.0, 20, 16, 4, 64, 1024, 50_000)
DRAFT = ModelShape("d", 10**8, 10**7, 0, 0.0, 2, 16, 4, 64, 1024, 50_000)


def roofline(**changes):
    """A machine of 1 TB/s and 100 TFLOP/s with 16-bit weights and no overhead."""

    def matrix_seconds(shape, rows):
        return max(shape.weights_read(rows) * 2 / 1e12, 2 * shape.weights_multiplied() * rows / 1e14)

    return Machine("m", matrix_seconds, 1e12, 1e14, 2.0, call_seconds=0.0, calls_per_layer=0, **changes)


@pytest.mark.parametrize("name", load_models())
def test_the_counted_weights_are_those_of_the_model_card(name):
    """All matrices and the embedding, if it is not the output layer too; norms are left out: below 1 % of a model."""
    model, shape = load_models()[name], known_shape(name)
    embedding = 0 if model.config["tie_word_embeddings"] else shape.output_weights
    assert shape.layer_weights + shape.output_weights + embedding == pytest.approx(model.parameters, rel=0.01)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox", "gemma2", "mixtral"])
def test_any_hugging_face_config_has_a_shape(kind):
    shape = ModelShape.from_config(AutoConfig.for_model(kind, num_hidden_layers=1))
    assert shape.num_layers == 1
    assert shape.layer_weights > 0
    assert shape.output_weights == shape.vocab_size * shape.hidden_size or kind == "opt"


def test_a_pass_over_more_tokens_reads_more_experts_and_multiplies_as_many():
    shape = ModelShape.from_config({"model_type": "mixtral", "num_hidden_layers": 1})
    assert shape.expert_share == 0.25
    assert shape.weights_read(1) == shape.weights_multiplied()
    assert shape.weights_read(16) > 3 * shape.weights_read(1) - 3 * shape.layer_weights
    assert shape.weights_read(16) <= shape.layer_weights + shape.output_weights + shape.expert_weights


def test_one_token_costs_its_bytes_and_many_cost_their_operations():
    machine = roofline()
    assert machine.pass_(SHAPE, 1, 1, 0) == pytest.approx(2.2e-3)
    assert machine.pass_(SHAPE, 1, 16, 0) == pytest.approx(2.2e-3)  # 16 tokens ride along
    assert machine.pass_(SHAPE, 64, 16, 0) == pytest.approx(22.5e-3, rel=0.01)  # 1024 rows do not


def test_keys_and_values_of_a_long_context_are_read_too():
    per_token = 2 * 20 * 4 * 64 * 2  # keys and values, layers, heads, width, bytes
    longer = roofline().pass_(SHAPE, 8, 1, 10_000) - roofline().pass_(SHAPE, 8, 1, 0)
    assert longer == pytest.approx(8 * 10_000 * per_token / 1e12)


def test_starts_add_to_the_work_or_hide_behind_it():
    starts = {"call_seconds": 1e-5, "calls_per_layer": 20}
    machine = Machine("m", roofline().matrix_seconds, 1e12, 1e14, 2.0, **starts)
    hidden = Machine("m", roofline().matrix_seconds, 1e12, 1e14, 2.0, overlapped=True, **starts)
    assert machine.pass_(SHAPE, 1, 1, 0) == pytest.approx(2.2e-3 + 4e-3)
    assert hidden.pass_(SHAPE, 1, 1, 0) == pytest.approx(4e-3)


def test_speculation_stops_paying_where_verification_costs():
    machine = roofline()
    few, many = (
        speculative_step(machine, SHAPE, DRAFT, batch=batch, num_draft_tokens=4, context=100).speedup(3.0)
        for batch in (1, 256)
    )
    assert few > 1.5
    assert many < 1


def synthetic_calibration():
    """A machine of 50 GB/s whose products cost by the row."""
    rows = (1, 4, 16, 64, 128)
    return Calibration(
        "m", "bfloat16", "now", 5e10, rows, tuple(4e-11 + 1e-12 * n for n in rows), 1e-6, 200, SHAPE, DRAFT, False
    )


def synthetic_costs():
    """What an engine on that machine would measure, with an overhead of its own: 3 ms a pass, and 0.1 ms by rows."""
    machine = calibrated_machine(synthetic_calibration())
    rows = []
    for batch in (1, 4):
        for tokens in range(1, 17):
            ms = {"target": machine.pass_(SHAPE, batch, tokens, 64) * 1e3 + 3 + 0.1 * (batch * tokens) ** 0.5}
            ms["sampling"] = machine.sampling(SHAPE, batch, tokens) * 1e3 + (0.4 if tokens == 1 else 0.7)
            ms["draft"] = machine.propose(DRAFT, batch, tokens, 64, 2) * 1e3 + 0.5 * (tokens + 1)
            rows += [(model, batch, 64, tokens, np.nan, value) for model, value in ms.items()]
    return pd.DataFrame(rows, columns=["model", "batch_size", "context_tokens", "num_tokens", "temperature", "ms"])


def test_a_fit_at_batch_1_and_one_gamma_finds_the_overhead_and_predicts_the_rest():
    costs = synthetic_costs()
    model = fit(synthetic_calibration(), costs, num_draft_tokens=4)
    assert model.machine.pass_seconds == pytest.approx(3e-3)
    assert model.machine.row_seconds == pytest.approx(1e-4)
    assert model.machine.draft_pass_seconds == pytest.approx(0.5e-3)
    assert model.propose(4, 8, 64) * 1e3 == pytest.approx(
        costs[(costs["model"] == "draft") & (costs["batch_size"] == 4) & (costs["num_tokens"] == 8)]["ms"].iloc[0]
    )


def test_the_error_table_says_what_the_fit_had_seen():
    from synthetic_rows import synthetic_rows

    costs = synthetic_costs()
    errors = error_table(fit(synthetic_calibration(), costs, 4), costs, synthetic_rows())
    passes = errors[errors["quantity"] == "verification pass"]
    assert passes["error"].abs().max() < 1e-6
    assert passes[passes["sample"] == "fit"]["num_tokens"].tolist() == [1, 5]
    assert set(errors["quantity"]) == {"verification pass", "baseline TPOT", "speculative TPOT"}
    assert "verification pass: 30 of 30, median error 0%" in finding_error(errors)


def test_a_product_of_fewer_rows_that_seemed_dearer_is_taken_as_noise():
    calibration = synthetic_calibration()
    noisy = replace(calibration, matrix_seconds_per_weight=(4e-11, 9e-11, *calibration.matrix_seconds_per_weight[2:]))
    here, there = (calibrated_machine(c).pass_(SHAPE, 1, 4, 0) for c in (noisy, calibration))
    assert here == pytest.approx(there * 5.6e-11 / 4.4e-11, rel=0.01)  # no more than a product of 16 rows


def test_a_plain_draft_of_one_layer_is_no_head():
    """A head first reads all gamma + 1 tokens of the step before, a plain draft two: 8 rows cost more than 2."""
    plain = replace(synthetic_calibration(), draft=replace(DRAFT, num_layers=1))
    head = replace(plain, draft_is_head=True)
    of_plain, of_head = (fit(each, synthetic_costs(), 4) for each in (plain, head))
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
        fit(synthetic_calibration(), costs[costs["batch_size"] > 1], 4)


def test_calibrating_a_toy_writes_what_reading_returns(tmp_path):
    calibration = calibrate(load_pair("toy"), rows=(1, 2, 4))
    assert calibration.read_bytes_per_second > 0
    assert calibration.call_seconds > 0
    assert calibration.calls_per_pass > 3
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration
    assert calibrated_machine(calibration).pass_(calibration.target, 1, 200, 10) > 0  # beyond what was measured


def test_four_bits_in_groups_carry_their_scales():
    assert BYTES["int4"] == 0.625
