"""What would decode other tokens than the model's own code, and say nothing, is refused with the true reason."""

import pytest
import torch
from architectures import tiny_config, tiny_model
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file
from tiny_models import SHAPE, tiny_llama
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama import modeling_llama

from specdec_lib import NgramProposer, SamplingConfig, autoregressive_decode, load_pair, speculative_decode
from specdec_lib.models.loading.architectures import check_architecture, context_length
from specdec_lib.models.loading.checkpoints import random_model
from specdec_lib.models.loading.faithful import refusing_foreign_code
from specdec_lib.models.runner import LanguageModel
from specdec_lib.params_files import load_params
from specdec_lib.study.dry_run.fake_gpu import fake_gpu

UP = "model.layers.1.mlp.up_proj.weight"


def without_a_tensor(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != UP}


def with_one_more(tensors):
    return tensors | {"model.layers.1.mlp.side_proj.weight": torch.zeros(2, 2)}


def with_a_prefix(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def with_another_shape(tensors):
    return tensors | {UP: torch.zeros(3, 3)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_a_tensor, f"lacks {UP}"),
        (with_one_more, "has more than its architecture: model.layers.1.mlp.side_proj.weight"),
        (with_a_prefix("wrapped."), "lacks .* and .* more: its files do not fit its config.json"),
        (
            with_a_prefix("module."),
            "lacks .* and .* more: its files do not fit its config.json .it has module.lm_head.weight.",
        ),
        (with_a_prefix("_orig_mod."), "lacks .* and .* more: its files do not fit its config.json"),
        (with_another_shape, "cannot load|another shape"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused_by_name(change, reason, tmp_path):
    """transformers fills in random weights, which differ at each load."""
    target, draft = write_checkpoint(tmp_path / "target"), write_checkpoint(tmp_path / "draft")
    file = tmp_path / "target" / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    with pytest.raises(ValueError, match=reason) as error:
        load_pair(target=target, draft=draft, device="cpu", dtype="float32")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_texts_are_refused_where_positions_would_change_with_the_longest_row(kind):
    """Those of longrope past the original context; those of dynamic scaling only past what the config allows."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64} | factors
    config = tiny_config("llama", rope_parameters=rope)
    model = LanguageModel(tiny_model(config), "long")
    longest = 64 if kind == "longrope" else 128
    assert model.context_length == context_length(config) == longest
    with pytest.raises(ValueError, match=f"exceed the context of long, {longest} tokens"):
        autoregressive_decode(model, [[1] * 60], max_new_tokens=longest - 59, sampling=SamplingConfig(temperature=0))


def test_dynamic_scaling_reads_nothing_on_the_host():
    """Transformers compares the longest position in each pass, which a CUDA graph cannot hold."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    params = load_params("h100", {"batch_sizes": [1], "num_draft_tokens": [4]})
    config = tiny_config("llama", rope_parameters=rope)
    with fake_gpu(params) as device:
        model = random_model("dynamic", config, "cuda", "bfloat16", 0)
        greedy = {"max_new_tokens": 6, "num_draft_tokens": 2, "sampling": SamplingConfig(temperature=0)}
        speculative_decode(model, NgramProposer(), [torch.arange(4)], **greedy)
        assert device.captures == 1


def test_attention_that_we_do_not_know_is_not_taken_for_ours():
    """Where the element type hides the difference, float32 shows it."""

    def doubled(module, query, key, value, mask, **options):
        out, weights = own(module, query, key, value, mask, **options)
        return out * 1.001, weights

    own = modeling_llama.eager_attention_forward
    model = LanguageModel(tiny_llama().bfloat16(), "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama, "eager_attention_forward", doubled)
        model.check_faithful()
    assert model.engine == "row by row"  # by its own code, not by ours


def test_what_has_not_been_tested_is_refused_where_small_differences_do_not_show():
    class NewConfig(LlamaConfig):
        model_type = "newcomer"

    for dtype in (torch.float32, torch.bfloat16):
        model = LanguageModel(LlamaForCausalLM(NewConfig(**SHAPE)).to(dtype), "new", compiled=False)
        if dtype == torch.float32:
            model.check_faithful()
        else:
            with pytest.raises(ValueError, match="of type newcomer, which has not been tested"):
                model.check_faithful()


def test_what_a_models_own_code_raises_is_said_in_a_line():
    with (
        pytest.raises(ValueError, match=r"^new cannot be decoded exactly \(AttributeError: it has no layers\): choose"),
        refusing_foreign_code("new"),
    ):
        raise AttributeError("it has\n no layers")


def test_a_model_that_sees_what_follows_is_refused():
    model = LanguageModel(tiny_model(tiny_config("bert")), "encoder")
    with pytest.raises(ValueError, match=r"encoder cannot be decoded exactly \(it reads tokens that follow"):
        model.check_faithful()


@pytest.mark.parametrize(("kind", "reason"), [("t5", "an encoder-decoder model"), ("vit", "writes no text by itself")])
def test_what_is_no_language_model_is_refused_by_its_config(kind, reason):
    with pytest.raises(ValueError, match=reason):
        check_architecture(CONFIG_MAPPING[kind](), "a model")
