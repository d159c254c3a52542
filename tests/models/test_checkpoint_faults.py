"""Checkpoints as people bring them: a fault is one line before weights are read, and rows tell checkpoints apart."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file

from specdec_lib import SamplingConfig, autoregressive_decode, load_pair
from specdec_lib.models import pair
from specdec_lib.models.loading import checkpoints, weights
from specdec_lib.models.loading.presets import Checkpoint, checkpoints_of, names_of
from specdec_lib.models.pair import check_study_pair, load_study_pair
from specdec_lib.params_files import load_params
from specdec_lib.study.prompt_file import Prompt
from specdec_lib.study.prompts import check_prompts, encode_prompts
from specdec_lib.study.runner import source_of


@pytest.fixture
def target(tmp_path):
    return Path(write_checkpoint(tmp_path / "target"))


def edit(file, **changes):
    """Change keys of a JSON file, which need not be there yet."""
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | changes))


def load(target, draft=None):
    return load_pair(target=target, draft=draft or target, dtype="float32")


def never(*arguments, **options):
    pytest.fail("weights were read")


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "awq"),
        ({"quant_method": "compressed-tensors", "config_groups": {}, "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao"),
        ({"quant_method": "of-next-year"}, "of-next-year"),
        ({"bits": 4}, "a method that its quantization_config does not name"),
    ],
)
def test_quantised_weights_without_their_package_are_refused_by_name(said, form, target, monkeypatch):
    edit(target / "config.json", quantization_config=said)
    monkeypatch.setattr(checkpoints, "load_language_model", never)
    with pytest.raises(ValueError, match=f"target holds weights quantised by {form} .*: install what") as refusal:
        load(target)
    assert "\n" not in str(refusal.value)


def test_eight_bits_of_a_family_without_kernels_are_refused_before_weights_are_read(tmp_path, monkeypatch):
    """Tiny matrices of Llama have too few columns for the kernels."""
    where = write_checkpoint(tmp_path / "target")
    monkeypatch.setattr(checkpoints, "load_language_model", never)
    monkeypatch.setattr(pair, "load_language_model", never)
    monkeypatch.setattr(pair, "why_no_kernels", lambda: None)
    shapes = study(where).model_copy(update={"weights": "random", "accepted_per_step": [1], "dtype": "int8"})
    for ask in (
        lambda: load_pair(target=where, draft=where, dtype="int8"),
        lambda: check_study_pair(study(where, dtype="int8")),
        lambda: load_study_pair(shapes),
    ):
        with pytest.raises(ValueError, match=r"do not compute .*target.* \(type llama\): give bfloat16, or a"):
            ask()


@pytest.mark.parametrize("tokens", [39, 41])
def test_a_vocabulary_of_another_size_than_the_weights_is_refused_by_tensor(tokens, target):
    edit(target / "config.json", vocab_size=tokens)
    problem = rf"vocab_size is {tokens} in its config.json, but model\.embed_tokens\.weight has 40 rows"
    for ask in (load, lambda where: check_study_pair(study(where))):
        with pytest.raises(ValueError, match=problem) as refusal:
            ask(target)
        assert "\n" not in str(refusal.value)


def test_a_tensor_in_another_shape_is_named_with_both(target):
    edit(target / "config.json", intermediate_size=25)
    with pytest.raises(ValueError, match=r"has in another shape model.layers.0.mlp.down_proj.weight \(\[16, 24\] inst"):
        load(target)


def test_an_adapter_is_refused_as_one(target):
    edit(target / "adapter_config.json", peft_type="LORA")
    with pytest.raises(ValueError, match="is an adapter: merge it into its model"):
        load(target)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ([1, 7, 9], 1, (1, 7, 9)),
        (7, [1, 9], (1, 7, 9)),
        (None, [9], (1, 9)),
        ([40, 999], 1, (1,)),  # no tokens of this vocabulary
        (2, 2, (1,)),  # the default of Llama's config, copied by save_pretrained
    ],
)
def test_every_stop_token_of_the_target_counts(generation, config, expected, target):
    """Of its generation config, its config and the tokenizer, whose own is 1."""
    edit(target / "generation_config.json", eos_token_id=generation)
    edit(target / "config.json", eos_token_id=config)
    pair = load(target)
    assert pair.stop_token_ids == expected
    given = {"max_new_tokens": 60, "sampling": SamplingConfig(5.0), "stop_token_ids": pair.stop_token_ids}
    result = autoregressive_decode(pair.target, [[3]], generator=torch.Generator().manual_seed(2), **given)
    assert int(result.tokens[0][-1]) in expected


def study(target, draft=None, **changes):
    models = {"pair": "custom", "target": str(target), "draft": str(draft or target)}
    return load_params("smoke", models | {"prompt_tokens": [0], "max_new_tokens": [8]} | changes)


def test_folders_with_one_last_name_are_told_apart(tmp_path):
    big, small = (Path(write_checkpoint(tmp_path / size / "final", layers=n)) for size, n in (("big", 2), ("small", 1)))
    pair = load(big, small)
    assert (pair.target_id, pair.draft_id) == ("big/final", "small/final")
    assert sorted(pair.files) == ["big/final/model.safetensors", "small/final/model.safetensors"]
    sources = {source_of(study(big, small), pair).weights}
    for changed in (big, small):
        file = changed / "model.safetensors"
        tensors = load_file(file)
        save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] + 1}, file, {"format": "pt"})
        sources.add(source_of(study(big, small), load(big, small)).weights)
    edit(big / "config.json", rms_norm_eps=1e-3)  # the same weights, computed with otherwise
    sources.add(source_of(study(big, small), load(big, small)).weights)
    assert len(sources) == 4


def test_a_configuration_tells_random_models_apart(target):
    """They have no files; the shape of one that costs the same may differ in what it computes."""
    params = study(target).model_copy(update={"weights": "random", "accepted_per_step": [1]})
    sources = {source_of(params, load_study_pair(params)).weights}
    edit(target / "config.json", rms_norm_eps=1e-3)
    sources.add(source_of(params, load_study_pair(params)).weights)
    assert len(sources) == 2


def test_names_are_as_short_as_they_differ(tmp_path):
    for name in ("a/x/final", "b/x/final", "b/x/draft"):
        (tmp_path / name).mkdir(parents=True)
    places = [Checkpoint(str(tmp_path / name)) for name in ("a/x/final", "b/x/final", "b/x/draft")]
    assert names_of(places[:2]) == ["a/x/final", "b/x/final"]
    assert names_of(places[1:]) == ["final", "draft"]
    assert names_of([places[0], places[0], Checkpoint("org/name")]) == ["final", "final", "org/name"]


def test_a_folder_that_has_the_name_of_a_hub_id_is_not_loaded_in_place_of_a_pinned_one(tmp_path, monkeypatch):
    """A preset names a commit: the hub is asked for it, whatever lies in the working directory."""
    (hub_id, _), (draft_id, commit) = checkpoints_of("qwen3-8b", None, None)
    for shadow in (hub_id, draft_id):
        write_checkpoint(tmp_path / shadow)
    monkeypatch.chdir(tmp_path)
    asked = []

    def hub(where, revision=None, **options):
        asked.append((where, revision))
        raise OSError("the hub was asked")

    monkeypatch.setattr(weights, "snapshot_download", hub)
    for refused in (
        lambda: load_pair("qwen3-8b"),
        lambda: check_study_pair(load_params("smoke", {"pair": "qwen3-8b"})),
    ):
        with pytest.raises(ValueError, match=f"cannot load {draft_id}: the hub was asked"):
            refused()
    assert asked == [(draft_id, commit)] * 2  # which may be a head
    assert load(hub_id).target_id == "Qwen3-8B"  # without a commit a folder comes first, as in transformers
    with pytest.raises(ValueError, match="has no revision abc"):
        load_pair(target=tmp_path / hub_id, draft=hub_id, target_revision="abc")


@pytest.mark.parametrize(
    ("rope", "remedy"),
    [
        ({"original_max_position_embeddings": 128}, "from 128 to 512, next to original_max_position_embeddings: 128"),
        ({}, "from 128 to 512, next to original_max_position_embeddings: 128"),
        ({"rope_type": "linear"}, None),
    ],
)
def test_a_context_that_yarn_extends_and_the_config_does_not_says_what_to_raise(rope, remedy, target):
    whole = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4} | rope
    edit(target / "config.json", rope_parameters=whole)
    prompts = study(target, max_new_tokens=[128])
    raised = (
        f", or raise max_position_embeddings in its config.json {remedy}, as its yarn factor allows" if remedy else ""
    )
    with pytest.raises(ValueError, match=r"exceed the context .* 128 tokens: lower .*") as refusal:
        check_prompts(prompts, *check_study_pair(prompts))
    assert str(refusal.value).endswith(raised or "mixed-chat-1") or not remedy
    with pytest.raises(ValueError, match=rf"exceed the context .* lower max_new_tokens{raised}$"):
        autoregressive_decode(load(target).target, [[3]], max_new_tokens=128, sampling=SamplingConfig(0))


def test_a_context_raised_as_told_decodes(target):
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
    edit(target / "config.json", rope_parameters=rope, max_position_embeddings=512)
    greedy = {"max_new_tokens": 200, "sampling": SamplingConfig(0)}
    assert autoregressive_decode(load(target).target, [[3]], **greedy).new_tokens == 200


def test_paths_may_be_path_objects(target, tmp_path):
    shutil.copytree(target, tmp_path / "draft")
    assert load_pair(target=target, draft=tmp_path / "draft").draft_id == "draft"


def test_a_generation_config_of_its_own_counts_also_where_it_names_the_default(target):
    (target / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert load(target).stop_token_ids == (1, 2)


@pytest.mark.parametrize("text", ["", "{nope", "[1]", '{"model_type": "nope"}'])
def test_a_broken_config_is_a_line_with_its_place(text, target):
    (target / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"^cannot load .*target: ") as refusal:
        load(target)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "change", [{"hidden_size": "16"}, {"num_attention_heads": 3}, {"vocab_size": None}, {"eos_token_id": "</s>"}]
)
def test_a_config_of_other_types_than_its_architecture_is_a_line(change, target):
    edit(target / "config.json", **change)
    with pytest.raises(ValueError, match=r"^cannot load .*target: .*alidation error") as refusal:
        load(target)
    assert "\n" not in str(refusal.value)


def test_stop_tokens_that_are_no_numbers_do_not_count(target):
    edit(target / "generation_config.json", eos_token_id="7")
    assert load(target).stop_token_ids == (1,)


def test_weights_that_are_no_numbers_are_refused_as_damaged(target):
    file = target / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * torch.nan}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"its logits are no numbers \(NaN or infinite\): its weights are damaged"):
        load(target)


@pytest.mark.parametrize(
    ("template", "tokens", "reason"),
    [
        ("{% for", 0, "cannot show what a user says .TemplateSyntaxError"),
        ("{{ raise_exception('no system') }}", 0, "TemplateError: no system"),
        ("{{ messages[0].content / 0 }}", 0, "TypeError"),
        ("hello", 12, "shows a user's text 0 times as it is, not once"),
        ("{{ messages[0].content * 2 }}", 12, "shows a user's text 2 times"),
    ],
)
def test_a_chat_template_that_does_not_work_is_a_line(template, tokens, reason, target):
    (target / "chat_template.jinja").write_text(template)
    tokenizer = load(target).tokenizer
    with pytest.raises(ValueError, match=reason) as refusal:
        encode_prompts([Prompt("a", "chat", "w3 w4", "w5 " * 20)], tokenizer, tokens)
    assert "\n" not in str(refusal.value)


def test_token_ids_of_any_size_are_compared_with_the_vocabulary(target):
    with pytest.raises(ValueError, match=r"has a token id outside 0\.\.39"):
        autoregressive_decode(load(target).target, [[2**70]], max_new_tokens=1, sampling=SamplingConfig(0))
