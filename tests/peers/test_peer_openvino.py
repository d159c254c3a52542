"""OpenVINO GenAI as a peer: the same weights in its own format, and every token it emits counted as it comes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from test_pair import write_checkpoint
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from specdec_lib.peers import install as peer_install
from specdec_lib.peers import openvino as peer_openvino
from specdec_lib.peers.gguf import interleaved, write_gguf
from specdec_lib.peers.workers import openvino_engine


@pytest.fixture
def checkpoint(tmp_path):
    return llama_checkpoint(tmp_path / "checkpoint")


def llama_checkpoint(folder):
    """A tiny Llama whose query heads share a key head, with a byte-level vocabulary, in bfloat16."""
    write_checkpoint(folder, num_key_value_heads=1, head_dim=8)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.BPE(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"], []))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(folder)
    return folder


def test_a_gguf_holds_the_very_same_model(checkpoint, tmp_path):
    """transformers reads back the same weights, up to the rounding of those that float16 has fewer digits for."""
    write_gguf(checkpoint, tmp_path / "model.gguf")
    ids = torch.arange(8)[None]
    mine, back = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        for folder, options in ((checkpoint, {}), (tmp_path, {"gguf_file": "model.gguf"}))
    )
    with torch.inference_mode():
        assert torch.allclose(mine(ids).logits, back(ids).logits, atol=1e-6)
    assert mine.state_dict().keys() == back.state_dict().keys()
    for name, weight in mine.state_dict().items():
        differ = (weight - back.state_dict()[name]).abs()
        assert differ.max() <= 2**-25
        assert not differ[weight.abs() >= 2**-14].any()
    matrices = [t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors if len(t.shape) > 1]
    assert {t.tensor_type for t in matrices} == {gguf.GGMLQuantizationType.F16}


def test_rows_of_a_head_go_from_halves_to_pairs():
    rows = torch.arange(8.0)[:, None]  # two heads of four
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_what_float16_cannot_hold_is_refused(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    model.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="beyond the range of float16"):
        write_gguf(checkpoint, tmp_path / "model.gguf")


def test_other_architectures_are_refused(checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="no Llama checkpoint"):
        write_gguf(checkpoint, tmp_path / "model.gguf")


CONVERTER = """
import pathlib, sys
made = pathlib.Path(sys.argv[1])
if pathlib.Path(__file__).with_name("broken").exists():
    sys.exit("no luck")
made.with_name("openvino_model.xml").write_text("made of " + str(made.stat().st_size))
"""


@pytest.fixture
def converter(monkeypatch, tmp_path):
    """A stand-in for the installed engine, which converts in a process of its own."""
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    python = peer_install.environment("openvino") / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "openvino_engine.py").write_text(CONVERTER)
    monkeypatch.setattr(peer_openvino, "WORKERS", tmp_path)
    return tmp_path


def test_a_checkpoint_is_converted_once_and_again_when_it_changes(converter, checkpoint):
    folder = peer_openvino.openvino_model(checkpoint)
    assert [path.name for path in folder.iterdir()] == ["openvino_model.xml"]  # the GGUF file is gone
    (converter / "openvino_engine.py").unlink()
    assert peer_openvino.openvino_model(checkpoint) == folder
    (converter / "openvino_engine.py").write_text(CONVERTER)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert peer_openvino.openvino_model(checkpoint) != folder


def test_a_failed_conversion_says_why_and_leaves_nothing(converter, checkpoint):
    (converter / "broken").touch()
    with pytest.raises(RuntimeError, match="no luck"):
        peer_openvino.openvino_model(checkpoint)
    assert list((peer_install.environment("openvino").parent / "openvino-models").iterdir()) == []
    with pytest.raises(ValueError, match="no folder"):
        peer_openvino.openvino_model(Path("organisation/model"))


class FakePipeline:
    """Emits the last token of the prompt, two at a time once it speculates."""

    def __init__(self, model, device, **properties):
        self.model, self.properties = model, properties
        FakePipeline.last = self

    def generate(self, prompt, config, streamer):
        self.config = config
        chunk = 2 if {"prompt_lookup", "draft_model"} & set(self.properties) else 1
        token = int(prompt[0, -1])
        for _ in range(config.max_new_tokens // chunk):
            streamer.write([token] * chunk if chunk > 1 else token)
        return SimpleNamespace(tokens=[[token] * config.max_new_tokens])


@pytest.fixture
def genai(monkeypatch):
    fake = SimpleNamespace(
        LLMPipeline=FakePipeline,
        SchedulerConfig=SimpleNamespace,
        GenerationConfig=SimpleNamespace,
        StreamerBase=object,
        StreamingStatus=SimpleNamespace(RUNNING=0),
        draft_model=lambda path, device, **properties: (path, properties),
        __version__="1.2",
    )
    monkeypatch.setitem(sys.modules, "openvino_genai", fake)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Tensor=lambda array: array))


def load(method, gamma):
    return openvino_engine.load("t", "d", method, gamma, "bfloat16", threads=2, context=64)


@pytest.mark.parametrize(
    ("method", "gamma", "counts"), [("autoregressive", None, [1] * 4), ("ngram", 4, [2, 2]), ("draft", 4, [2, 2])]
)
def test_every_token_is_counted_as_it_arrives(genai, method, gamma, counts):
    decode, version = load(method, gamma)
    tokens, arrivals = decode(prompt=[5, 7], new_tokens=4, temperature=0.0, top_k=0, top_p=1.0, seed=3)
    assert version == "1.2"
    assert tokens == [7] * 4
    assert [count for _, count in arrivals] == counts
    assert sorted(seconds for seconds, _ in arrivals) == [seconds for seconds, _ in arrivals]


def test_it_computes_as_the_others_do(genai):
    """The study's precision also for keys and values, its threads, its length and its sampling; nothing remembered."""
    decode, _ = load("draft", 4)
    decode(prompt=[5], new_tokens=4, temperature=0.7, top_k=5, top_p=0.9, seed=3)
    pipeline = FakePipeline.last
    expected = {"INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"}
    assert pipeline.properties["draft_model"] == ("d", expected)
    assert {name: pipeline.properties[name] for name in expected} == expected
    assert pipeline.properties["scheduler_config"].enable_prefix_caching is False
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "rng_seed": 3}
    assert vars(pipeline.config) == {"max_new_tokens": 4, "ignore_eos": True, "num_assistant_tokens": 4} | sampling
