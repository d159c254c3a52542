"""Params: what a file says, what a command overrides, and that a refusal is one line which names the remedy."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from specdec_lib import params_files
from specdec_lib.cli.study import explained
from specdec_lib.config import StudyParams, validate_params
from specdec_lib.methods import METHODS
from specdec_lib.params_files import (
    PARAMS_FOLDER,
    available_params,
    data_folder,
    finished_run,
    load_params,
    notebook_parameters,
    params_of_run,
    parse_overrides,
)


@pytest.mark.parametrize("name", available_params())
def test_a_params_file_says_only_what_differs_from_the_defaults(name):
    said = yaml.safe_load((PARAMS_FOLDER / f"{name}.yaml").read_text())
    assert load_params(name).model_dump() == StudyParams(gpu=name).model_dump() | said
    assert all(said[key] != StudyParams.model_fields[key].default for key in said)


def test_every_key_is_explained_and_printed_with_its_mark():
    params = load_params("h100", {"batch_sizes": [1, 8]})
    text = explained(params)
    assert yaml.safe_load(text) == params.model_dump()
    assert "batch_sizes: [1, 8]  # <- default: [1, 2, 4, 8, 16, 32]" in text
    assert "\nseed: 0\n" in text + "\n"
    assert all(field.description for field in StudyParams.model_fields.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batchsizes": [1]}, "unknown key batchsizes: did you mean batch_sizes?"),
        ({"qqqq": 1}, "unknown key qqqq: remove it"),
        ({"num_draft_tokens": [0]}, "num_draft_tokens.0: .*greater than or equal to 1"),
        ({"temperatures": [-0.5]}, "temperatures.0: .*greater than or equal to 0"),
        ({"temperatures": [float("inf")]}, "temperatures.0: .*finite number"),
        ({"batch_sizes": []}, "batch_sizes: "),
        ({"batch_sizes": [1, 1]}, "name each value once"),
        ({"dtype": "int4"}, "dtype: "),
        (
            {"dtype": "int8", "device": "cuda", "pair": "qwen3-8b"},
            "dtype is int8 on cuda: only the CPU kernels have it, give bfloat16",
        ),
        ({"headline_num_draft_tokens": 9}, "choose one of num_draft_tokens"),
        ({"repetitions": "3"}, "repetitions: .*integer"),
        ({"methods": ["drafd"]}, "methods: unknown name 'drafd': choose one of draft, ngram, .*: did you mean draft?"),
        ({"methods": ["autoregressive"]}, "methods: unknown name 'autoregressive'"),
        (
            {"verification": ["tokens"]},
            "verification: unknown name 'tokens': choose one of token.*did you mean token?",
        ),
        ({"draft_length": ["confident:0.4"]}, "unknown draft length 'confident:0.4': choose one of fixed, conf"),
        ({"draft_length": ["confidence"]}, "'confidence': write confidence:<the least .*>, a number between 0 and 1"),
        ({"draft_length": ["acceptance:2"]}, "'acceptance:2': write acceptance:<what a draft token costs"),
        ({"draft_length": ["fixed:4"]}, "'fixed:4': write fixed$"),
        ({"draft_length": ["fixed", "confidence:0.4"], "device": "cuda"}, "with device: cuda choose fixed or batch"),
        ({"methods": ["early_exit"]}, "methods: early_exit drafts with layers of the target, toys have none"),
        ({"methods": ["two_chains"], "pair": "smollm2-135m-embedded"}, "methods: two_chains verifies .*: choose draft"),
        ({"methods": ["two_chains"], "draft_length": ["acceptance:0.1"]}, "draft_length: two_chains .*: choose fixed"),
        ({"plugins": ["no_such_module"]}, "plugins: no_such_module cannot be imported .*ModuleNotFoundError"),
        ({"gpu": "other"}, "gpu is other: it is the name of the params file, smoke"),
    ],
)
def test_bad_values_are_refused_by_key(change, message):
    with pytest.raises(ValueError, match=message) as refusal:
        load_params("smoke", change)
    assert str(refusal.value).startswith("overrides")
    assert "\n" not in str(refusal.value)


def test_gpu_is_the_one_key_without_a_default():
    with pytest.raises(ValueError, match="gpu: Field required"):
        validate_params({}, source="test.yaml")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no params file for GPU=h101: choose one of .*cpu.* mean h100"):
        load_params("h101")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu: [", "not valid YAML"),
        ("pair: toy\npair: smoke", "pair is there twice"),
        ("", "holds no keys"),
        ("gpu: smoke", "gpu: smoke: write other"),
    ],
)
def test_a_file_that_is_no_params_file_is_refused(tmp_path, text, message):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_params(tmp_path / "other.yaml")


def test_a_file_outside_the_repository_names_its_study_and_reaches_notebooks_by_its_path(tmp_path):
    (tmp_path / "mine.yaml").write_text("pair: toy\ndtype: float32\n")
    params = load_params(str(tmp_path / "mine.yaml"), {"batch_sizes": [2]})
    assert params.gpu == "mine"
    values = notebook_parameters(params)
    assert values == {"gpu": str(tmp_path / "mine.yaml"), "overrides": {"batch_sizes": [2]}}
    assert load_params(values["gpu"], values["overrides"]) == params


def test_a_run_is_found_by_its_name_under_outputs_and_only_params_are_measured(tmp_path, monkeypatch):
    """A folder that has the name of a params file does not hide the file: that study is measured, not read."""
    outputs, elsewhere = tmp_path / "outputs", tmp_path / "elsewhere"
    monkeypatch.setattr(params_files, "OUTPUTS_FOLDER", outputs)
    facts = json.dumps({"params": load_params("smoke").model_dump()})
    for folder in (outputs / "published" / "mine", elsewhere / "cpu"):
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text(facts)
    monkeypatch.chdir(elsewhere)
    assert finished_run("published/mine") == data_folder("published/mine") == outputs / "published" / "mine"
    assert load_params("published/mine").model_dump() == load_params("smoke").model_dump()
    assert finished_run(tmp_path / "elsewhere" / "cpu") == tmp_path / "elsewhere" / "cpu"
    assert finished_run("cpu") is None
    assert data_folder("cpu") == outputs / "cpu"
    assert data_folder("published/mine", "there") == Path("there")
    with pytest.raises(ValueError, match="or of a run's folder"):
        finished_run("published/none")


def test_a_run_without_later_keys_and_with_former_ones_can_be_read():
    kept = load_params("smoke").model_dump() | {"extra_repetitions": 2, "interval_width": 0.1}
    later = ("weights", "accepted_per_step", "tensor_parallel", "verification", "plugins", "draft_length")
    old = {key: value for key, value in kept.items() if key not in later}
    assert params_of_run({"params": old}, "environment.json") == load_params("smoke")
    with pytest.raises(ValueError, match="holds no params"):
        params_of_run({}, "environment.json")


def test_overrides_are_keys_with_yaml_values():
    text = "batch_sizes=[1, 8] temperatures=[0] pair=toy device_name='NVIDIA H100' target=null"
    assert parse_overrides(text) == {
        "batch_sizes": [1, 8],
        "temperatures": [0],
        "pair": "toy",
        "device_name": "NVIDIA H100",
        "target": None,
    }
    assert parse_overrides("") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1,8]", "has no key"),
        ("pair toy", "'pair toy' has no key: write key=value"),
        ("pair=", "pair has no value"),
        ("seed=1 seed=2", "seed is given twice"),
        ("batch_sizes=[1", "the value of batch_sizes is not valid YAML"),
    ],
)
def test_overrides_of_another_form_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_overrides(text)


def test_a_plugin_registers_a_method_that_params_may_name(tmp_path, monkeypatch):
    code = "from specdec_lib.methods import METHODS, Method, register\n"
    code += "register(Method('mine', 'my drafts', '#000000', 'x', make=lambda pair: None, pieces=('mine',)))\n"
    (tmp_path / "my_methods.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert load_params("smoke", {"plugins": ["my_methods"], "methods": ["mine"]}).methods == ["mine"]
    finally:
        METHODS.pop("mine", None)
        sys.modules.pop("my_methods", None)


def test_a_custom_pair_needs_target_and_draft():
    both = {"pair": "custom", "target": "a/target", "draft": "a/draft"}
    assert load_params("smoke", both).target == "a/target"
    for wrong in ({"pair": "custom"}, both | {"draft": None}, both | {"pair": "toy"}):
        with pytest.raises(ValueError, match="give target and draft with pair: custom"):
            load_params("smoke", wrong)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"gpuu": "smoke"}, "unknown key gpuu: did you mean gpu"),
        ({"pair": "custom", "target": "a", "draf": "b"}, "unknown key draf: did you mean draft"),
        ({"gpu": "x", "batch_size": [1], "seed": "7"}, "unknown key batch_size: did you mean batch_sizes"),
    ],
)
def test_a_misspelt_key_is_named_before_what_it_leaves_out(data, message):
    with pytest.raises(ValueError, match=rf"^test\.yaml: {message}\?$"):
        validate_params(data, source="test.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_sizes": 4}, "batch_sizes: Input should be a valid list, not 4"),
        ({"methods": "draft"}, "methods: Input should be a valid list, not 'draft'"),
        ({"temperatures": ["cold"]}, "temperatures.0: Input should be a valid number.*, not 'cold'"),
        ({"seed": None}, "seed: Input should be a valid integer, not None"),
        ({"target": 5}, "target: Input should be a valid string, not 5"),
        ({"compare_transformers": "no"}, "compare_transformers: Input should be a valid boolean, not 'no'"),
        ({"prompt_set": ["a"]}, "prompt_set: Input should be a valid string"),
        ({3: 4}, "3: Keys should be strings"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(change, message):
    with pytest.raises(ValueError, match=f"overrides of smoke.yaml: {message}") as refusal:
        load_params("smoke", change)
    assert "\n" not in str(refusal.value)


def test_paths_of_models_are_those_of_the_params_file_or_else_of_the_current_directory(tmp_path, monkeypatch):
    """They are absolute from then on: kernels and workers may run elsewhere. Hub ids stay what they are."""
    for name in ("study/t", "study/org/small", "shell/t", "shell/plain"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "shell")
    file = tmp_path / "study" / "mine.yaml"

    def models(target, draft, **more):
        file.write_text(yaml.safe_dump({"pair": "custom", "target": target, "draft": draft} | more))
        found = load_params("../study/mine.yaml")
        given = notebook_parameters(found)
        monkeypatch.chdir(tmp_path)
        assert load_params(given["gpu"], given["overrides"]) == found
        monkeypatch.chdir(tmp_path / "shell")
        return [
            str(Path(each).relative_to(tmp_path)) if each.startswith("/") else each
            for each in (found.target, found.draft)
        ]

    assert models("./t", "../study/t") == ["study/t", "study/t"]
    assert models("t", "org/small") == ["study/t", "study/org/small"]
    assert models("./not-there", "model.gguf") == ["study/not-there", "study/model.gguf"]
    assert models("plain", "Qwen/Qwen3-0.6B") == ["shell/plain", "Qwen/Qwen3-0.6B"]
    assert models("org/small", "org/small", draft_revision="abc") == ["study/org/small", "org/small"]
    overridden = load_params("smoke", {"pair": "custom", "target": "./t", "draft": "org/small"})
    assert (overridden.target, overridden.draft) == (str(tmp_path / "shell" / "t"), "org/small")
