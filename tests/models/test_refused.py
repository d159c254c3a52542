"""What would decode other tokens than the model's own code, and say nothing, is refused with the true reason."""

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig

from specdec_lib import load_pair
from specdec_lib.models.attention import our_attention
from specdec_lib.models.checkpoints import check_architecture
from specdec_lib.models.runner import LanguageModel

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
def test_positions_that_change_with_the_longest_row_are_refused(kind):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64} | factors
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, max_position_embeddings=128, rope_parameters=rope)
    with pytest.raises(ValueError, match=f"turns its positions by {kind}"):
        check_architecture(config, "a model")
    check_architecture(LlamaConfig(hidden_size=16, num_attention_heads=2), "a model")


def test_attention_with_sinks_is_refused():
    """Our attention knows no sinks: it would leave them out."""
    config = GptOssConfig(
        vocab_size=48, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=128,
        layer_types=["full_attention"] * 2, attn_implementation=our_attention(),
    )  # fmt: skip
    model = LanguageModel(GptOssForCausalLM(config), "with sinks")
    with pytest.raises(ValueError, match="with sinks attends in a way of its own"):
        model.check_faithful()
