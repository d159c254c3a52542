"""Studies of shapes: random weights and a given acceptance, whose rows are measured in time and silent about text."""

import json

import pytest
import torch
from transformers import AutoConfig

from specdec_lib import ModelProposer, speculative_decode
from specdec_lib.analysis import metrics
from specdec_lib.analysis.step_table import read_step_costs
from specdec_lib.analysis.waterfall import waterfall
from specdec_lib.config import SamplingConfig, validate_params
from specdec_lib.decoding.decode import autoregressive_decode
from specdec_lib.models.loading.architectures import text_config
from specdec_lib.models.loading.checkpoints import config_of, random_model, random_shapes
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.models.pair import check_study_pair, load_pair, load_study_pair
from specdec_lib.params_files import load_params
from specdec_lib.study.decode_cell import GivenAcceptance
from specdec_lib.study.sweep import run_sweep_here

SHAPE = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 128, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """A study of two small shapes that accepts 3, 0 and 1 tokens in turn."""
    places = {}
    for name, changes in {"target": {}, "draft": {"num_hidden_layers": 1, "hidden_size": 32}}.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(SHAPE | changes))
        places[name] = str(folder)
    study = load_params("smoke").model_dump() | places | {"pair": "custom", "weights": "random"}
    return validate_params(study | {"accepted_per_step": [3, 0, 1], "repetitions": 2}, source="test.yaml")


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    run_sweep_here(params, folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    from specdec_lib.study.rows.table import read_results

    return read_results(folder)


def test_rows_are_measured_and_say_that_weights_are_random_and_acceptance_given(rows):
    assert (rows["status"] == "ok").all()
    assert (rows["evidence"] == "measured").all()
    assert (rows["pair"] == "custom (random weights)").all()
    speculative = rows[rows["method"] != "autoregressive"]
    assert (speculative["verification"] == "given").all()
    assert speculative[["acceptance_rate", "draft_efficiency", "mean_acceptance_length"]].isna().all().all()
    assert (speculative["tpot_ms"] > 0).all()


def test_such_rows_have_a_speedup_but_enter_no_acceptance_result(rows, folder):
    lines = metrics.speedups(rows)
    assert lines["speedup"].notna().all()
    assert lines["acceptance_rate"].isna().all()
    assert lines["mean_acceptance_length"].isna().all()
    assert metrics.acceptance_by_position(rows).empty
    stages = waterfall(rows, read_step_costs(folder))
    assert stages[["iid", "by_position"]].isna().all().all()
    assert (stages["as_emitted"] > 1).all()


def test_the_stated_sequence_is_replayed_shifted_by_row_and_cut_where_the_draft_ends():
    pair = load_pair("toy")
    result = speculative_decode(
        pair.target,
        ModelProposer(pair.draft),
        [torch.tensor([1, 2]), torch.tensor([3])],
        max_new_tokens=12,
        num_draft_tokens=2,
        sampling=SamplingConfig(temperature=1.0),
        generator=torch.Generator().manual_seed(0),
        verification=GivenAcceptance((2, 0, 5)),
    )
    assert [counts[0] for counts in result.step_tokens][:4] == [3, 1, 3, 3]
    assert [counts[1] for counts in result.step_tokens][:4] == [1, 3, 3, 1]


def test_every_preset_has_shapes_that_need_no_download(params):
    """Padded to one size: Gemma 3 27B has 64 rows more than Gemma 3 1B for the same tokens."""
    for pair in PRESETS:
        shapes = random_shapes(params.model_copy(update={"pair": pair, "target": None, "draft": None}))
        sizes = [text_config(config).vocab_size for _, config in shapes]
        assert sizes[0] == sizes[1] == max(text_config(config_of(name)).vocab_size for name in PRESETS[pair])


def test_random_weights_do_not_stand_for_quantised_ones(params):
    quantised = params.model_copy(update={"pair": "qwen3-8b-fp8", "target": None, "draft": None})
    for refuse in (check_study_pair, load_study_pair):
        with pytest.raises(ValueError, match="are not quantised, and Qwen/Qwen3-8B-FP8 is, by fp8: choose shapes of"):
            refuse(quantised)


def test_random_recurrent_models_are_read_by_their_own_code():
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    tiny |= {"head_dim": 16, "vocab_size": 64, "num_hidden_layers": 4, "linear_num_value_heads": 2}
    tiny |= {"linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    config = AutoConfig.for_model("qwen3_5_text", **tiny)
    model = random_model("tiny", config, "cpu", "float32", 0)
    made = autoregressive_decode(
        model, [torch.arange(5)], max_new_tokens=4, sampling=SamplingConfig(temperature=0)
    ).tokens
    own = model.model.generate(torch.arange(5)[None], max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert made[0].tolist() == own[0, 5:].tolist()


def test_a_study_of_shapes_is_checked_before_anything_is_made(params):
    check_study_pair(params)
    with pytest.raises(ValueError, match=r"give a folder with a config\.json"):
        check_study_pair(params.model_copy(update={"target": "nowhere/at-all"}))
    with pytest.raises(ValueError, match="knows no shapes for pair 'toy-pair'"):
        check_study_pair(params.model_copy(update={"pair": "toy-pair", "target": None, "draft": None}))


def test_shapes_of_two_vocabularies_are_refused(params, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": 64}))
    with pytest.raises(ValueError, match="vocabularies of 128 and 64 tokens"):
        load_study_pair(params.model_copy(update={"draft": str(tmp_path)}))


@pytest.mark.parametrize("change", [{"weights": "random"}, {"accepted_per_step": [1]}])
def test_random_weights_and_a_given_acceptance_come_together(change):
    with pytest.raises(ValueError, match="give accepted_per_step, such as"):
        validate_params(load_params("smoke").model_dump() | change, source="test.yaml")
