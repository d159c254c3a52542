"""Other engines: what each file says, how it is installed, and how a process answers. Stand-ins play the engines."""

import json
import sys
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from checkpoints import write_grouped_checkpoint

from specdec_lib.config import SamplingConfig
from specdec_lib.peers import installed
from specdec_lib.peers.engines import llama_engine, openvino_engine
from specdec_lib.peers.installed import Engine, known_engines

GREEDY = SamplingConfig(temperature=0)
CALL = {"new_tokens": 4, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 3}
MADE_UP = """
ENGINE = {"name": "made-up", "requirement": "made-up==1.0", "megabytes": 1, "methods": ("autoregressive", "draft")}

def load(target, draft, method, num_draft_tokens, dtype, threads, context):
    print("noise of the engine")
    if method == "draft":
        raise OSError("no such\\nmodel")
    def decode(emit, prompt, new_tokens, temperature, top_k, top_p, seed):
        if seed == 13:
            raise ValueError("bad luck")
        emit(prompt[-1:])
        emit(prompt[-1:] * (new_tokens - 1))
    return decode, "1.2"
"""


def test_engine_files_import_nothing_of_this_library_and_name_known_methods():
    """They run where this library is not installed."""
    engines = known_engines()
    assert engines
    for engine in engines:
        assert "specdec_lib" not in engine.file.read_text()
        assert set(engine.greedy_only) <= set(engine.methods) <= {"autoregressive", "ngram", "draft"}


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """An engine of our own, whose environment is this interpreter; installed."""
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    file = tmp_path / "made_up_engine.py"
    file.write_text(MADE_UP)
    engine = Engine(file, "made-up", "made-up==1.0", 1, ("autoregressive", "draft"), greedy_only=("autoregressive",))
    python = engine.environment.python
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (engine.environment.folder / "installed").write_text("made-up==1.0\n")
    monkeypatch.setattr(installed, "known_engines", lambda: [engine])
    return engine


def test_an_installed_engine_joins_with_every_method_that_it_offers(made_up):
    """One that cannot load is a way that fails, and says why."""
    plain = SimpleNamespace(target=SimpleNamespace(dtype=torch.bfloat16), name="pair", draft_id="d")
    with ExitStack() as stack:
        works, fails = installed.installed_ways(plain, "t", "d", [4], 64, stack)
        result = works.decode(torch.tensor([5, 7]), 4, GREEDY, 0)
        assert result.tokens[0].tolist() == [7] * 4
        assert len(set(result.emission_times(0))) == 2, "three of the four tokens arrived together"
        with pytest.raises(RuntimeError, match="ValueError: bad luck"):
            works.decode(torch.tensor([5]), 4, GREEDY, 13)
        assert works.decode(torch.tensor([9]), 2, GREEDY, 0).tokens[0].tolist() == [9, 9]
    assert (works.engine_version, works.greedy_only, works.num_draft_tokens) == ("1.2", True, None)
    assert (fails.engine_version, fails.method, fails.draft_id, fails.num_draft_tokens) == ("unknown", "draft", "d", 4)
    with pytest.raises(RuntimeError, match="OSError: no such model"):
        fails.decode(torch.tensor([1]), 4, GREEDY, 0)
    assert "noise of the engine" in (made_up.environment.folder.parent / "made-up-autoregressive-0.log").read_text()


def test_an_engine_that_dies_says_where_to_look(made_up):
    load = {"target": "t", "draft": "d", "dtype": "bfloat16", "threads": 1, "context": 64, "num_draft_tokens": None}
    with installed.EngineProcess(made_up, load | {"method": "autoregressive"}) as engine:
        engine.process.kill()
        engine.process.wait()
        with pytest.raises(RuntimeError, match=r"ended without an answer; see .*made-up-autoregressive-0\.log"):
            engine.decode(torch.tensor([1]), 4, GREEDY, 0)


def test_weights_are_converted_for_engines_that_read_gguf_only(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    checkpoint = str(write_grouped_checkpoint(tmp_path / "checkpoint"))
    for engine in known_engines():
        found = installed.readable(engine, checkpoint, torch.bfloat16)
        assert Path(found).exists()
        assert (found == checkpoint) == (engine.weights == "checkpoint")


def test_what_cannot_be_installed_says_why_and_an_older_pin_does_not_count(made_up, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert installed.install_engines()["made-up"].startswith("installed before")
    (made_up.environment.folder / "installed").write_text("made-up==0.9\n")
    outcome = installed.install_engines()["made-up"]
    assert outcome.startswith("failed: ERROR: No matching distribution found for made-up==1.0")
    assert not made_up.installed


class Completions(BaseHTTPRequestHandler):
    """Repeats the last token of the prompt as llama.cpp's server does: one event a token, and a last one with none."""

    asked = None

    def do_POST(self):
        Completions.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(self.asked["prompt"]) > 8:
            self.send_error(400, "too long")
            return
        self.send_response(200)
        self.end_headers()
        events = [{"tokens": self.asked["prompt"][-1:]}] * self.asked["n_predict"] + [{"tokens": [], "stop": True}]
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def llama_server(monkeypatch):
    """A stand-in for xllamacpp: its parameters take any name, its server is a real one on this machine."""
    with HTTPServer(("127.0.0.1", 0), Completions) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def start(params):
            start.params = params
            return SimpleNamespace(listening_address="http://{}:{}".format(*listening.server_address))

        def params():
            cpu = {name: SimpleNamespace() for name in ("cpuparams", "cpuparams_batch")}
            draft = SimpleNamespace(mparams=SimpleNamespace(path=""), **cpu)
            speculative = SimpleNamespace(draft=draft, ngram_simple=SimpleNamespace(), types=[])
            return SimpleNamespace(model=SimpleNamespace(), speculative=speculative, **cpu)

        names = ("COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE", "COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE")
        kinds = SimpleNamespace(**dict(zip(names, ("ngram", "draft"), strict=True)))
        package = {"CommonParams": params, "Server": start, "common_speculative_type": kinds, "__version__": "1.2"}
        monkeypatch.setitem(sys.modules, "xllamacpp", SimpleNamespace(**package))
        yield start
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(("method", "gamma"), [("autoregressive", None), ("ngram", 4), ("draft", 4)])
def test_llama_emits_every_token_as_it_arrives(llama_server, method, gamma):
    decode, version = llama_engine.load("t.gguf", "d.gguf", method, gamma, "bfloat16", threads=2, context=64)
    emitted = []
    decode(emitted.append, prompt=[5, 7], **CALL)
    assert (version, emitted) == ("1.2", [[7]] * 4)
    assert Completions.asked.items() >= {"temperature": 0.0, "ignore_eos": True, "cache_prompt": False}.items()
    speculative = llama_server.params.speculative
    assert speculative.types == ([] if gamma is None else [method])
    assert speculative.draft.mparams.path == ("d.gguf" if method == "draft" else "")
    with pytest.raises(RuntimeError, match="answered 400"):
        decode(emitted.append, prompt=[5] * 9, **CALL)
    with pytest.raises(ValueError, match="greedy"):
        decode(emitted.append, prompt=[5], **(CALL | {"temperature": 1.0}))


class Pipeline:
    """A stand-in for OpenVINO's: repeats the last token of the prompt, two at a time when it speculates."""

    made: ClassVar = []

    def __init__(self, model, device, **properties):
        self.model, self.properties = model, properties
        Pipeline.made.append(self)

    def generate(self, prompt, config, streamer):
        self.config = config
        chunk = 2 if {"prompt_lookup", "draft_model"} & set(self.properties) else 1
        token = int(prompt[0, -1])
        for _ in range(config.max_new_tokens // chunk):
            streamer.write([token] * chunk if chunk > 1 else token)


@pytest.fixture
def genai(monkeypatch):
    fake = SimpleNamespace(
        LLMPipeline=Pipeline,
        SchedulerConfig=SimpleNamespace,
        GenerationConfig=SimpleNamespace,
        StreamerBase=object,
        StreamingStatus=SimpleNamespace(RUNNING=0),
        draft_model=lambda path, device, **properties: (path, properties),
        __version__="1.2",
    )
    monkeypatch.setattr(Pipeline, "made", [])
    monkeypatch.setitem(sys.modules, "openvino_genai", fake)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Tensor=lambda array: array))


@pytest.mark.parametrize(
    ("method", "gamma", "counts"), [("autoregressive", None, [1] * 4), ("ngram", 4, [2, 2]), ("draft", 4, [2, 2])]
)
def test_openvino_emits_every_token_and_computes_as_the_others_do(genai, tmp_path, method, gamma, counts):
    """In the study's precision also for keys and values, with its threads and its sampling."""
    models = [str(tmp_path / name / "model.gguf") for name in ("target", "draft")]
    for model in models:
        Path(model).parent.mkdir()
    decode, version = openvino_engine.load(*models, method, gamma, "bfloat16", threads=2, context=64)
    emitted = []
    decode(emitted.append, prompt=[5, 7], **(CALL | {"temperature": 0.7, "top_k": 5}))
    assert (version, emitted) == ("1.2", [[7] * count for count in counts])
    pipeline = Pipeline.made[-1]
    expected = {"INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"}
    assert {name: pipeline.properties[name] for name in expected} == expected
    assert pipeline.config.ignore_eos
    assert (pipeline.config.temperature, pipeline.config.top_k, pipeline.config.rng_seed) == (0.7, 5, 3)
    converted = [made.model for made in Pipeline.made if made.properties == {"enable_save_ov_model": True}]
    assert converted == models[::-1] if method == "draft" else converted == models[:1]
    openvino_engine.load(*models, method, gamma, "bfloat16", threads=2, context=64)
    assert len(Pipeline.made) == len(converted) + 2, "converted once"
