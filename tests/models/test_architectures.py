"""Every architecture: the tokens of transformers' own `generate`, in a ragged batch, past the edge of a window."""

import pytest
import torch
from architectures import PAGE, SHAPES, TABLE, VOCABULARY, page, tiny_config, tiny_model
from checkpoints import write_checkpoint
from transformers import GenerationConfig

from specdec_lib import ModelProposer, SamplingConfig, autoregressive_decode, load_pair, speculative_decode
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.exactness.joint_law import put_to_test
from specdec_lib.exactness.subjects.in_process import engine_sampler
from specdec_lib.models.attention import our_attention, set_attention
from specdec_lib.models.loading.tested_architectures import read_as
from specdec_lib.models.runner import LanguageModel

GREEDY = SamplingConfig(temperature=0)
NEW_TOKENS, GAMMA = 8, 3
PROMPTS = [torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 12, 9)]
pytestmark = pytest.mark.slow


class KnownTokens(Proposer):
    """Proposes the tokens to come, but for every fourth, which is wrong; so steps accept from none to all."""

    def __init__(self, tokens: torch.Tensor):  # [B, n]
        self.tokens = tokens

    def propose(self, rows, num_draft_tokens, uniforms):
        places = (rows.lengths - rows.prompt_lengths)[:, None] + torch.arange(num_draft_tokens)
        tokens = self.tokens.gather(1, places.clamp(max=self.tokens.shape[1] - 1))
        tokens = torch.where(places % 4 == 3, (tokens + 1) % VOCABULARY, tokens)
        return tokens, torch.nn.functional.one_hot(tokens, rows.vocab_size).float()


def generated(model):  # [B, n]
    """What transformers makes of each prompt alone, with the model's own attention and a cache of its choice."""
    model.generation_config = GenerationConfig()
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    options = {"generation_config": settings}
    rows = [model.generate(p[None], attention_mask=torch.ones_like(p[None]), **options)[0, len(p) :] for p in PROMPTS]
    return torch.stack(rows)


def checked(model, name="tiny"):
    """The model as `load_pair` makes it of a checkpoint."""
    set_attention(model, our_attention())
    language_model = LanguageModel(model, name)
    language_model.check_faithful()
    return language_model


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {*TABLE["slow"]}))
def test_tokens_are_those_of_generate(name):
    model = tiny_model(tiny_config(**SHAPES[name]))
    expected = generated(model)
    target = checked(model)
    options = {"max_new_tokens": NEW_TOKENS, "num_draft_tokens": GAMMA, "sampling": GREEDY}
    found = speculative_decode(target, KnownTokens(expected), PROMPTS, **options)
    assert [row.tolist() for row in found.tokens] == expected.tolist()
    assert 0 < found.accepted < found.drafted
    assert target.engine == read_as(model.config)  # as fast as docs/models.md says


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss", "deepseek_v3", "gptj", "qwen3_next", "mamba", "openai-gpt"])
def test_models_of_each_kind_draft(name):
    """The draft reads what was accepted, past what it drafted in vain, whatever it keeps of a text."""
    target = checked(tiny_model(tiny_config("llama")))
    same, other = (checked(tiny_model(tiny_config(**SHAPES[name]), seed)) for seed in (0, 1))
    options = {"max_new_tokens": NEW_TOKENS, "sampling": GREEDY}
    expected = autoregressive_decode(target, PROMPTS, **options).tokens
    options["num_draft_tokens"] = GAMMA
    found = speculative_decode(target, ModelProposer(other), PROMPTS, **options).tokens
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]
    itself = speculative_decode(same, ModelProposer(same), PROMPTS, **options)
    assert itself.accepted == itself.tested  # what it drafts is what it verifies


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "deepseek_v3", "llama4_text"])
def test_sampled_tokens_follow_the_targets_law(name):
    """Windows and caps, sinks, compressed keys, chunks. A false alarm has a chance below 1e-8."""
    config = tiny_config(**SHAPES[name] | {"vocab_size": 8})
    target, draft = (checked(tiny_model(config, seed)) for seed in (0, 1))
    options = {"sampling": SamplingConfig(), "length": 3}
    sample = engine_sampler(target, ModelProposer(draft), batch_size=500, num_draft_tokens=2, **options)
    tests, _ = put_to_test(sample, target, [PROMPTS[1] % 8], samples=500, seed=0, **options)
    assert tests["p_value"].min() > 1e-8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gptj", "gemma3", "llava", "mamba", "opt-350m"])
def test_checkpoints_of_all_kinds_make_pairs(name, dtype, tmp_path):
    """Those of multimodal models with all their towers."""
    folder = write_checkpoint(tmp_path)
    tiny_model(tiny_config(**SHAPES[name])).save_pretrained(folder)
    pair = load_pair(target=folder, draft=folder, dtype=dtype)
    prompts = [prompt.tolist() for prompt in PROMPTS]
    options = {"max_new_tokens": 4, "sampling": GREEDY}
    made = speculative_decode(pair.target, ModelProposer(pair.draft), prompts, num_draft_tokens=2, **options)
    assert pair.target.engine == pair.draft.engine == read_as(pair.target.model.config)
    assert made.accepted > 0


def test_the_page_of_models_is_current():
    """If not, run `python tests/support/architectures.py`."""
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(written)
