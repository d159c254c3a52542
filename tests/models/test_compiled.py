"""Layers through `torch.compile`: the same tokens as without it, and a reason where it cannot be."""

import os

import pytest
import torch
from tiny_models import tiny_llama
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from transformers import Qwen3ForCausalLM

from specdec_lib import NgramProposer, SamplingConfig, autoregressive_decode, speculative_decode
from specdec_lib.models.engines import inductor as compiled
from specdec_lib.models.engines.inductor import InductorEngine, NotCompiledError
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.toy import toy_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what PyTorch deprecates
PROMPTS = [torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 3, 1]), torch.tensor([2, 7, 1, 8])]


def tiny() -> LanguageModel:
    body = tiny_llama(kind=Qwen3ForCausalLM, head_dim=16, tie_word_embeddings=False)
    return LanguageModel(body, "tiny", feature_layers=(0, 1))


@pytest.fixture(scope="module")
def qwen():
    return tiny()


@pytest.fixture(scope="module")
def compiled_qwen():
    model = tiny()
    model.compile()
    return model


def decode(model, speculate, temperature):
    options = {"max_new_tokens": 30, "sampling": SamplingConfig(temperature)}
    options["generator"] = torch.Generator().manual_seed(2)
    if speculate:
        result = speculative_decode(model, NgramProposer(), PROMPTS, num_draft_tokens=3, **options)
    else:
        result = autoregressive_decode(model, PROMPTS, **options)
    return [row.tolist() for row in result.tokens], result.step_tokens


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("speculate", [False, True])
def test_compiled_layers_give_the_same_tokens_in_float32(qwen, compiled_qwen, speculate, temperature):
    assert (qwen.engine, compiled_qwen.engine) == ("eager", "inductor")
    assert decode(compiled_qwen, speculate, temperature) == decode(qwen, speculate, temperature)


@pytest.mark.slow
def test_one_compiled_layer_serves_all_layers_lengths_and_capacities(qwen, compiled_qwen):
    """Three layers are one; only sizes of one, and a context that fills the cache, make variants."""
    before = counters["stats"]["unique_graphs"]
    for count, (batch, tokens, capacity) in enumerate([(2, 5, 80), (3, 9, 200), (2, 70, 130), (4, 2, 300), (2, 7, 8)]):
        ids = torch.randint(96, (batch, tokens), generator=torch.Generator().manual_seed(count))
        steps = [each.forward(ids, each.new_cache(batch, capacity)) for each in (qwen, compiled_qwen)]
        assert torch.allclose(steps[0].features, steps[1].features, atol=1e-4)
    assert (compiled_qwen.engine, compiled_qwen.why_not_compiled) == ("inductor", None)
    assert counters["stats"]["unique_graphs"] <= before + 2


def test_a_model_of_another_shape_stays_as_it_is_and_says_why(caplog):
    toy = toy_model(8, torch.Generator().manual_seed(0))
    toy.compile()
    assert toy.engine == "eager"
    assert toy.why_not_compiled == "its body has no embed_tokens, layers, norm, rotary_emb"
    assert "is not compiled and runs slower" in caplog.text


def test_a_shape_that_cannot_be_compiled_runs_as_it_is(qwen, caplog):
    model = tiny()

    class Fails(InductorEngine):
        def run_layers(self, *arguments):
            raise NotCompiledError("Unsupported: this shape")

    model.active_engine = Fails(model.body, model.head, model.feature_layers, model.context_length)
    tokens = torch.tensor([[1, 2, 3]])
    hidden = [each.forward(tokens, each.new_cache(1, 8)).hidden for each in (model, qwen)]
    assert torch.equal(*hidden)
    assert (model.engine, model.why_not_compiled) == ("eager", "Unsupported: this shape")


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_what_is_compiled_is_kept_in_our_cache_folder_unless_another_is_chosen(chosen, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    folder = str(tmp_path / (chosen or "inductor"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folder if chosen else default_cache_dir())  # the compiler's own
    compiled._compiled_layer.__wrapped__()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == folder
