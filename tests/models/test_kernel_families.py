"""The C++ kernels compute each family as transformers does, past the edge of a window too."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import transformers
from tiny_models import SHAPE, needs_kernels, seeded

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.machine.calibration import matrix_weights
from specdec_lib.machine.environment import path_of
from specdec_lib.models.attention import our_attention
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.engines.layers import MATRICES, EightBits, read_layers
from specdec_lib.models.loading.checkpoints import load_language_model
from specdec_lib.models.pair import load_pair
from specdec_lib.models.runner import LanguageModel

pytestmark = needs_kernels

LONGROPE = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LONGROPE |= {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {  # what each has that a plain Llama has not; windows of 5 tokens
    "llama": {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3},
    "internlm3": {"attention_bias": True, "mlp_bias": True},
    "iquestcoder": {},
    "mistral": {"sliding_window": 5},
    "ministral": {"sliding_window": 5, "layer_types": MIXED},
    "cwm": {"sliding_window": 5, "layer_types": MIXED},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen3": {},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "granite": {
        "embedding_multiplier": 12.0, "attention_multiplier": 0.05, "residual_multiplier": 0.22, "logits_scaling": 8.0,
    },
    "seed_oss": {"attention_bias": True, "attention_out_bias": True},
    "gemma": {"hidden_act": "gelu_pytorch_tanh"},
    "gemma3_text": {"sliding_window": 5, "layer_types": MIXED, "query_pre_attn_scalar": 20},
}  # fmt: skip


def tiny(family, attention, dtype=torch.float32, seed=0, **changes):
    """A random model of a family, with norms and biases that do something, whose weights bfloat16 can hold."""
    ends = {
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }  # those of large vocabularies are not in a small one
    config = transformers.AutoConfig.for_model(family, **SHAPE | ends | FAMILIES[family] | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for weight in model.parameters():
            small = 0.3 * torch.randn(weight.shape) if weight.dim() == 1 else 0
            weight.data = (weight.data + small).bfloat16().to(dtype)
    return model.eval().requires_grad_(False)


def on_kernels(family):
    model = LanguageModel(tiny(family, our_attention(), torch.bfloat16), family)
    assert model.engine == "kernels"
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_closer_to_float32_on_the_kernels_than_in_bfloat16(family):
    tokens, ours = torch.randint(96, (2, 40), generator=seeded()), on_kernels(family)
    exact, rounded = (tiny(family, "eager", dtype).base_model for dtype in (torch.float32, torch.bfloat16))
    expected, theirs = (body(tokens).last_hidden_state.float() for body in (exact, rounded))
    found = ours.forward(tokens, ours.new_cache(2, 40)).hidden.float()
    assert (found - expected).norm() < (theirs - expected).norm()
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_of_a_ragged_batch_are_those_of_float32(family):
    """But for near ties: each token's logit in float32, in the text so far, is the largest or almost."""
    ours, exact = on_kernels(family), tiny(family, "eager")
    prompts = [torch.randint(96, (length,), generator=seeded(length)) for length in (3, 30, 12)]
    result = autoregressive_decode(ours, prompts, max_new_tokens=20, sampling=SamplingConfig(temperature=0))
    for prompt, tokens in zip(prompts, result.tokens, strict=True):
        logits = exact(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
        missing = logits.amax(-1) - logits.gather(1, tokens[:, None])[:, 0]
        assert missing.max() < 0.1 * logits.std()
        assert (missing == 0).float().mean() > 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_never_depends_on_the_others_nor_on_the_tokens_of_a_pass(family):
    """Seven tokens of three rows at once, where some windows end and others do not, and one by one."""
    ours, lengths = on_kernels(family), torch.tensor([30, 1, 4])
    texts, tokens = (torch.randint(96, (3, number), generator=seeded()) for number in (30, 7))
    batch, single = ours.new_cache(3, 37), [ours.new_cache(1, 37) for _ in range(3)]
    for cache, rows, known in [(batch, texts, lengths), *zip(single, texts.split(1), lengths.split(1), strict=True)]:
        ours.forward(rows, cache)
        cache.set_lengths(known, max_length=30)
    together = ours.logits(ours.forward(tokens, batch).hidden)
    for row, cache in enumerate(single):
        for position in range(7):
            step = ours.forward(tokens[row : row + 1, position : position + 1], cache)
            cache.commit(1, at_most=1)
            assert torch.equal(ours.logits(step.hidden)[0, 0], together[row, position])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"hidden_act": "relu"}),
        ("llama", {"rope_parameters": LONGROPE}),
        ("llama", {"head_dim": 48}),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
    ids=str,
)
def test_what_the_description_has_no_word_for_runs_without_kernels(family, changes):
    assert LanguageModel(tiny(family, our_attention(), torch.bfloat16, **changes), family).engine == "eager"


@pytest.mark.parametrize("window", [0, 7, 9])
@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_a_window_that_the_kernels_get_wrong_is_found_at_load(family, window, monkeypatch):
    """Longer than the text of the trial, as real windows are; another length is seen in the config."""
    model = LanguageModel(tiny(family, our_attention(), torch.bfloat16, sliding_window=100), family)
    model.check_faithful()
    assert model.engine == "kernels"
    monkeypatch.setattr(
        KernelEngine, "narrowed", staticmethod(lambda layers, to: replace(layers, layers=[
            replace(each, window=window if each.window else 0) for each in layers.layers
        ]))
    )  # fmt: skip
    with pytest.raises(AssertionError, match="computes another model past the edge of its window"):
        model.check_faithful()
    other = tiny(family, our_attention(), torch.bfloat16, sliding_window=100)
    model = LanguageModel(other, family)
    other.config.sliding_window = 99
    with pytest.raises(AssertionError, match=r"has windows of \[100\], and the config of"):
        model.check_faithful()


def test_a_weight_without_a_place_keeps_a_model_off_the_kernels():
    body = tiny("qwen3", our_attention(), torch.bfloat16).base_model
    assert read_layers(body) is not None
    body.layers[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    assert read_layers(body) is None


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_a_model_in_8_bits_is_the_model_of_its_rounded_weights(family):
    """And of no others: the bfloat16 weights of its layers are gone, so that nothing can take them by mistake."""
    ours, exact = on_kernels(family), tiny(family, "eager")
    tokens = torch.randint(96, (2, 40), generator=seeded())
    before = ours.forward(tokens, ours.new_cache(2, 40)).hidden
    ours.round_to_eight_bits()
    assert (ours.precision, ours.dtype) == ("int8", torch.bfloat16)
    for layer, name in product(exact.base_model.layers, MATRICES.values()):
        weight = layer.get_submodule(name).weight
        numbers, factors = EightBits.of(weight.data)
        weight.data = numbers * factors[:, None]
    expected = exact.base_model(tokens).last_hidden_state
    found = ours.forward(tokens, ours.new_cache(2, 40)).hidden
    assert not torch.equal(found, before)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert sum(weight.numel() for weight in ours.body.layers.parameters() if weight.dim() == 2) == 0


def test_models_loaded_in_8_bits_say_so_and_speculate_losslessly(tmp_path):
    for name in ("target", "draft"):
        tiny("qwen3", "eager", seed=len(name)).save_pretrained(tmp_path / name)
    target, draft = (load_language_model(str(tmp_path / name), "cpu", "int8", name) for name in ("target", "draft"))
    assert (target.precision, path_of(target)) == ("int8", "int8, kernels")
    assert {numbers.dtype for numbers, _ in matrix_weights(target)} == {torch.int8}  # what calibration times
    prompts = [torch.arange(5), torch.arange(9)]
    given = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=0)}
    expected = autoregressive_decode(target, prompts, **given).tokens
    tokens = speculative_decode(target, ModelProposer(draft), prompts, num_draft_tokens=3, **given).tokens
    assert all(map(torch.equal, tokens, expected))


def test_8_bits_are_refused_where_the_kernels_do_not_compute_a_model():
    with pytest.raises(ValueError, match=r"dtype is int8, which only the CPU kernels have, .*: give bfloat16"):
        LanguageModel(tiny("llama", our_attention()), "float32").round_to_eight_bits()
    with pytest.raises(ValueError, match=r"dtype is int8.*do not run on cpu with compiled=False: give bfloat16"):
        load_pair("smollm2-135m-embedded", dtype="int8", compiled=False)


@pytest.mark.parametrize(("family", "changes"), [("granite", {}), ("gemma3_text", {"final_logit_softcapping": 3.0})])
def test_what_a_model_does_to_its_logits_is_done_to_those_of_the_kernels_too(family, changes):
    ours, exact = (tiny(family, *how, **changes) for how in ((our_attention(), torch.bfloat16), ("eager",)))
    model, tokens = LanguageModel(ours, family), torch.randint(96, (1, 20), generator=seeded())
    logits = model.logits(model.forward(tokens, model.new_cache(1, 20)).hidden)
    expected = exact(tokens).logits
    assert (model.engine, logits.dtype) == ("kernels", torch.float32)
    assert (logits - expected).norm() < 0.02 * expected.norm()
