"""Params files: what is accepted, and that a refusal is one line which names the remedy."""

import pytest
import yaml

from specdec_lib.config import available_params, load_params, validate_params

SMOKE = load_params("smoke").model_dump()


@pytest.mark.parametrize("name", available_params())
def test_every_params_file_is_valid_and_complete(name):
    assert load_params(name).gpu == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batchsizes": [1]}, "unknown key batchsizes: did you mean batch_sizes?"),
        ({"qqqq": 1}, "unknown key qqqq: remove it"),
        ({"num_draft_tokens": [0]}, "num_draft_tokens.0: .*greater than or equal to 1"),
        ({"temperatures": [-0.5]}, "temperatures.0: .*greater than or equal to 0"),
        ({"temperatures": [float("inf")]}, "temperatures.0: .*finite number"),
        ({"batch_sizes": []}, "batch_sizes: "),
        ({"dtype": "int8"}, "dtype: "),
        ({"headline_num_draft_tokens": 9}, "choose one of num_draft_tokens"),
        ({"repetitions": "3"}, "repetitions: .*integer"),
    ],
)
def test_bad_values_are_refused_by_key(change, message):
    with pytest.raises(ValueError, match=message) as refusal:
        validate_params(SMOKE | change, source="test.yaml")
    assert str(refusal.value).startswith("test.yaml: ")
    assert "\n" not in str(refusal.value)


def test_a_missing_key_is_refused():
    with pytest.raises(ValueError, match="seed: Field required"):
        validate_params({key: value for key, value in SMOKE.items() if key != "seed"}, source="test.yaml")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no params file for GPU=tpu: choose one of .*cpu"):
        load_params("tpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [("gpu: [", "not valid YAML"), ("", "holds no keys"), (yaml.safe_dump(SMOKE), "says gpu: smoke: it must be other")],
)
def test_a_file_that_is_no_params_file_is_refused(tmp_path, text, message):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_params("other", tmp_path)


def test_a_custom_pair_needs_target_and_draft():
    both = {"pair": "custom", "target": "a/target", "draft": "a/draft"}
    assert validate_params(SMOKE | both, source="test.yaml").target == "a/target"
    for wrong in ({"pair": "custom"}, both | {"draft": None}, both | {"pair": "toy"}):
        with pytest.raises(ValueError, match="give target and draft with pair: custom"):
            validate_params(SMOKE | wrong, source="test.yaml")
