"""Random models of a real architecture, small enough for tests, and a head that drafts for one of them."""

import pytest
import torch
from transformers import LlamaForCausalLM

from specdec_lib.distill.students import HeadStudent
from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.models.attention import our_attention
from specdec_lib.models.runner import LanguageModel

SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "initializer_range": 0.2,
    "tie_word_embeddings": True, "attn_implementation": our_attention(),
}  # fmt: skip
ONE_GROUP = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8}

needs_kernels = pytest.mark.skipif(why_no_kernels() is not None, reason=f"no kernels: {why_no_kernels()}")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_llama(seed=0, kind=LlamaForCausalLM, **shape):
    """A random Llama, or a model of another kind, of `SHAPE` but for what `shape` says."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(kind.config_class(**SHAPE | shape))


def tiny_target(hidden_size=24):
    """A random Llama of 3 layers, 3 heads in 1 group and 48 tokens, with layers 0 and 1 tapped."""
    sizes = {"vocab_size": 48, "hidden_size": hidden_size, "intermediate_size": 32, "max_position_embeddings": 128}
    return LanguageModel(tiny_llama(**sizes, **ONE_GROUP, initializer_range=0.02), "tiny", feature_layers=(0, 1))


def save_head(folder, target, scored):
    """Write a random head on the layers 0 and 1 of `target` that scores these tokens; returns `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HeadStudent(target.model, (0, 1), scored).draft.save(folder)
    return folder
