"""Whatever model transformers' own `generate` calls, target or assistant, attends as transformers would have it."""

import copy

import pytest
import torch
from tiny_models import tiny_llama
from transformers import Qwen3ForCausalLM

from specdec_lib.config import SamplingConfig
from specdec_lib.exactness.subjects.in_process import assistant, transformers_sampler
from specdec_lib.models.attention import NAME, as_transformers_does, grouped_attention
from specdec_lib.models.runner import LanguageModel
from specdec_lib.study.transformers_generate import transformers_decode

PROMPT = torch.tensor([5, 2, 7, 1, 9, 3])
SHAPES = {  # heads, and heads of keys and values
    "as many": {"num_attention_heads": 2, "num_key_value_heads": 2},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "one group": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "Qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2, "kind": Qwen3ForCausalLM},
}


def models(shape):
    """A target and its draft with our attention, and copies of both with that of transformers."""
    ours = [tiny_llama(seed, **SHAPES[shape]).eval() for seed in (0, 1)]
    theirs = [copy.deepcopy(model) for model in ours]
    for model in theirs:
        model.set_attn_implementation("sdpa")
    return ours, theirs


@pytest.mark.parametrize("shape", SHAPES)
def test_assisted_generation_is_that_of_models_loaded_without_us(shape):
    ours, theirs = models(shape)

    def decode(target, draft):
        sampling, draft = SamplingConfig(temperature=1.0), assistant(draft, 3)
        return transformers_decode(
            LanguageModel(target, "target"),
            [PROMPT],
            max_new_tokens=12,
            sampling=sampling,
            seed=0,
            assistant_model=draft,
        )

    ours_made, theirs_made = decode(*ours), decode(*theirs)
    assert ours_made.tokens[0].tolist() == theirs_made.tokens[0].tolist()
    assert ours_made.step_tokens == theirs_made.step_tokens  # the draft proposed the same, reading causally
    assert [model.config._attn_implementation for model in ours] == [NAME, NAME]
    assert [model.config._attn_implementation for model in theirs] == ["sdpa", "sdpa"]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_certificates_samples_are_those_of_models_loaded_without_us(shape):
    drawn = []
    for target, draft in models(shape):
        options = {"sampling": SamplingConfig(), "length": 5, "assistant_model": assistant(draft, 2)}
        sample = transformers_sampler(LanguageModel(target, "target"), **options)
        drawn.append(sample([PROMPT], 3, seed=0)[0].tolist())
    assert drawn[0] == drawn[1]


def test_everything_is_given_back_when_generate_fails():
    (target, draft), _ = models("grouped")
    defaults = target.generation_config

    def fail():
        assert {model.config._attn_implementation for model in (target, draft)} == {"sdpa"}
        assert target.generation_config is not defaults
        raise MemoryError

    with pytest.raises(MemoryError), as_transformers_does(target, draft):
        fail()
    assert {model.config._attn_implementation for model in (target, draft)} == {NAME}
    assert target.generation_config is defaults


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_without_a_mask_is_refused(groups):
    query, key = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2 // groups, 3, 4)
    with pytest.raises(ValueError, match="got none"):
        grouped_attention(torch.nn.Module(), query, key, key, None, scaling=1.0)
    target = models("as many" if groups == 1 else "grouped")[0][0]
    with pytest.raises(ValueError, match="as_transformers_does"):
        target.generate(PROMPT[None], max_new_tokens=2)
