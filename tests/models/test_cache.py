"""The ragged cache: cached passes equal uncached ones, whatever was written and rolled back in between."""

import gc
import weakref

import pytest
import torch
from tiny_models import tiny_llama
from transformers import LlamaForCausalLM

from specdec_lib.models.attention import our_attention
from specdec_lib.models.runner import LanguageModel


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A tiny Llama with grouped heads, in float32."""
    return LanguageModel(tiny_llama(), "tiny")


def uncached_logits(model: LanguageModel, text: torch.Tensor) -> torch.Tensor:
    """Logits of the last position by transformers' own attention, without any cache."""
    model.model.set_attn_implementation("eager")
    logits = model.model(input_ids=text[None], use_cache=False).logits[0, -1]
    model.model.set_attn_implementation(our_attention())
    return logits


def test_ragged_rows_with_rollback_equal_uncached_passes(model):
    texts = [torch.arange(1, 1 + n) for n in (9, 4, 6)]
    cache = model.new_cache(3, 40)
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    model.forward(padded[:, :3], cache)  # too much and wrong: rolled back below
    cache.commit(3, at_most=3)
    cache.set_lengths(torch.tensor([2, 1, 0]), 2)
    rest = torch.nn.utils.rnn.pad_sequence([texts[0][2:], texts[1][1:], texts[2][0:]], batch_first=True)
    step = model.forward(rest, cache)
    cache.commit(torch.tensor([7, 3, 6]), at_most=7)
    assert cache.lengths.tolist() == [len(text) for text in texts]
    for row, (text, new) in enumerate(zip(texts, (7, 3, 6), strict=True)):
        assert torch.allclose(model.logits(step.hidden[row, new - 1]), uncached_logits(model, text), atol=1e-5)


def test_stale_entries_behind_the_length_do_not_matter(model):
    clean, dirty = model.new_cache(1, 40), model.new_cache(1, 40)
    text = torch.arange(5, 15)[None]
    model.forward(text, clean)
    model.forward(text, dirty)
    for cache in (clean, dirty):
        cache.commit(4, at_most=4)
    for layer in dirty.layers:
        layer.keys[:, :, 4:] = 100.0
        layer.values[:, :, 4:] = -100.0
    step = torch.tensor([[3, 1]])
    assert torch.equal(model.forward(step, clean).hidden, model.forward(step, dirty).hidden)


def test_a_full_cache_refuses_more(model):
    cache = model.new_cache(1, 10)
    cache.commit(cache.capacity - 1, at_most=cache.capacity - 1)
    with pytest.raises(AssertionError, match="cannot take"):
        model.forward(torch.tensor([[1, 2]]), cache)


def test_what_a_model_does_to_its_logits_is_done(model):
    class Scaled(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2
            return output

    scaled = LanguageModel(Scaled(model.model.config), "scaled")
    for each in (model, scaled):
        each.check_faithful()
    hidden = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled.logits(hidden), 2 * scaled.head.model.lm_head(hidden))
    assert model.head is model.model.lm_head  # nothing else is done, so that kernels may compute it


def test_a_dropped_cache_is_freed_at_once(model):
    """Without waiting for the garbage collector: on a GPU the next cell needs that memory."""
    cache = model.new_cache(2, 64)
    keys = weakref.ref(cache.layers[0].keys)
    gc.disable()
    try:
        del cache
        assert keys() is None
    finally:
        gc.enable()
