"""llama.cpp as a peer: the very same weights in its own format, and every token of its server counted as it comes."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from test_peer_openvino import llama_checkpoint
from transformers import AutoModelForCausalLM

from specdec_lib.peers import processes as peer_processes
from specdec_lib.peers.gguf import gguf_name, interleaved
from specdec_lib.peers.install import PEERS
from specdec_lib.peers.llama import llama_model
from specdec_lib.peers.workers import llama_engine


def test_bfloat16_weights_are_copied_bit_for_bit_once(tmp_path, monkeypatch):
    """Only the rows of query and key heads change places, for neighbours rotate together in GGUF."""
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    checkpoint = llama_checkpoint(tmp_path / "checkpoint")
    path = llama_model(checkpoint, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, weight in model.state_dict().items():
        tensor = written[gguf_name(name)]
        if weight.ndim == 1:
            assert torch.equal(torch.tensor(tensor.data), weight.float())
            continue
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
        rotated = heads.get(name.split(".")[-2])
        assert tensor.tensor_type == gguf.GGMLQuantizationType.BF16
        stored = torch.tensor(tensor.data).view(torch.bfloat16).view(weight.shape)
        assert torch.equal(stored, interleaved(weight, rotated) if rotated else weight)
    before = path.stat()
    assert llama_model(checkpoint, torch.bfloat16).stat() == before  # the second time it is there
    assert llama_model(checkpoint, torch.float32) != path
    assert not list(path.parent.glob("making-*"))
    with pytest.raises(ValueError, match="no folder"):
        llama_model(Path("organisation/model"), torch.bfloat16)


class Completions(BaseHTTPRequestHandler):
    """Sends the last token of the prompt, as llama.cpp's server sends: one event a token, a last one with none."""

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
def server(monkeypatch):
    """A stand-in for the package: its parameters take any name, its server is a real one on this machine."""
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


def load(method, gamma):
    return llama_engine.load("t.gguf", "d.gguf", method, gamma, "bfloat16", threads=2, context=64)


@pytest.mark.parametrize(("method", "gamma"), [("autoregressive", None), ("ngram", 4), ("draft", 4)])
def test_every_token_is_counted_as_it_arrives(server, method, gamma):
    decode, version = load(method, gamma)
    tokens, arrivals = decode(prompt=[5, 7], new_tokens=4, temperature=0.0, top_k=0, top_p=1.0, seed=3)
    assert version == "1.2"
    assert tokens == [7] * 4
    assert [count for _, count in arrivals] == [1] * 4
    assert sorted(seconds for seconds, _ in arrivals) == [seconds for seconds, _ in arrivals]
    assert Completions.asked.items() >= {"temperature": 0.0, "ignore_eos": True, "cache_prompt": False}.items()
    speculative = server.params.speculative
    assert speculative.types == ([] if gamma is None else [method])
    assert {"ngram": getattr(speculative.ngram_simple, "size_m", None), "autoregressive": None}.get(method, 4) == gamma
    assert speculative.draft.mparams.path == ("d.gguf" if method == "draft" else "")
    assert server.params.cpuparams.n_threads == speculative.draft.cpuparams.n_threads == 2


def test_what_its_server_refuses_and_what_is_not_greedy_is_an_error(server):
    decode, _ = load("autoregressive", None)
    with pytest.raises(RuntimeError, match="answered 400"):
        decode(prompt=[5] * 9, new_tokens=4, temperature=0.0, top_k=0, top_p=1.0, seed=3)
    with pytest.raises(ValueError, match="greedy"):
        decode(prompt=[5], new_tokens=4, temperature=1.0, top_k=0, top_p=1.0, seed=3)
    methods = ("autoregressive", "ngram", "draft")
    assert {("llama.cpp", method) for method in methods} < peer_processes.GREEDY_ONLY
    assert PEERS["llama.cpp"].module == "llama_engine"
