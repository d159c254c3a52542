"""A checkpoint as a GGUF file holds the very same weights, and is written once."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from checkpoints import write_grouped_checkpoint
from transformers import AutoModelForCausalLM

from specdec_lib.models.loading.gguf_writing import gguf_of, interleaved, write_gguf


@pytest.fixture
def checkpoint(tmp_path):
    return write_grouped_checkpoint(tmp_path / "checkpoint")


def test_transformers_reads_the_same_model_back_from_float16(checkpoint, tmp_path):
    """Up to the rounding of weights below 6e-5, for which float16 has fewer digits than bfloat16."""
    write_gguf(checkpoint, tmp_path / "model.gguf", torch.float16)
    mine, back = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        for folder, options in ((checkpoint, {}), (tmp_path, {"gguf_file": "model.gguf"}))
    )
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.allclose(mine(ids).logits, back(ids).logits, atol=1e-6)
    assert mine.state_dict().keys() == back.state_dict().keys()
    for name, weight in mine.state_dict().items():
        differ = (weight - back.state_dict()[name]).abs()
        assert differ.max() <= 2**-25
        assert not differ[weight.abs() >= 2**-14].any()


def test_bfloat16_weights_are_copied_bit_for_bit(checkpoint, tmp_path):
    write_gguf(checkpoint, tmp_path / "model.gguf", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for name, here in (("v_proj", "attn_v"), ("o_proj", "attn_output"), ("q_proj", "attn_q"), ("k_proj", "attn_k")):
        weight = model.get_submodule(f"model.layers.1.self_attn.{name}").weight
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}.get(name)
        stored = torch.tensor(written[f"blk.1.{here}.weight"].data).view(torch.bfloat16).view(weight.shape)
        assert torch.equal(stored, interleaved(weight, heads) if heads else weight)


def test_rows_of_a_head_go_from_halves_to_pairs():
    rows = torch.arange(8.0)[:, None]  # two heads of four
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_what_float16_cannot_hold_and_other_architectures_are_refused(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    model.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="beyond the range of float16"):
        write_gguf(checkpoint, tmp_path / "model.gguf", torch.float16)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="no Llama checkpoint"):
        write_gguf(checkpoint, tmp_path / "model.gguf", torch.float16)


def test_a_checkpoint_is_converted_once_and_again_when_it_changes(checkpoint, tmp_path):
    path = gguf_of(checkpoint, tmp_path / "models", torch.bfloat16)
    before = path.stat()
    assert gguf_of(checkpoint, tmp_path / "models", torch.bfloat16).stat() == before
    assert gguf_of(checkpoint, tmp_path / "models", torch.float32) != path
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert gguf_of(checkpoint, tmp_path / "models", torch.bfloat16) != path
    assert not list((tmp_path / "models").glob("making-*"))
    with pytest.raises(ValueError, match="no folder"):
        gguf_of(Path("organisation/model"), tmp_path, torch.bfloat16)
