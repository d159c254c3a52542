"""The cache while speculation rolls it back: it holds what was committed, and its logits are the uncached ones."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.exactness.adversaries import tiny_llamas
from specdec_lib.models.runner import LanguageModel

TARGET, DRAFT = (LanguageModel(model, "tiny Llama") for model in tiny_llamas())


class Watched(LanguageModel):
    """Remembers the lengths of the cache before each pass after the prefill, what was read and the logits."""

    def __init__(self):
        super().__init__(TARGET.model, TARGET.name)
        self.passes = []

    def forward(self, tokens, cache, counts=None):
        lengths = cache.lengths.clone()
        step = super().forward(tokens, cache)
        if lengths.any():
            self.passes.append((lengths, tokens, self.logits(step.hidden)))
        return step


def uncached(text: torch.Tensor) -> torch.Tensor:  # [n] to [n, V]
    """Every logit of a text by a single pass."""
    return TARGET.logits(TARGET.forward(text[None], TARGET.new_cache(1, len(text))).hidden)[0]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 2**20),
)
def test_the_cache_holds_what_was_committed_and_its_logits_are_the_uncached_ones(prompts, gamma, seed):
    target, prompts = Watched(), [torch.tensor(prompt) for prompt in prompts]
    result = speculative_decode(
        target,
        ModelProposer(DRAFT),
        prompts,
        max_new_tokens=12,
        num_draft_tokens=gamma,
        sampling=SamplingConfig(),
        generator=torch.Generator().manual_seed(seed),
    )
    texts = [torch.cat(pair) for pair in zip(prompts, result.tokens, strict=True)]
    committed = torch.tensor([len(prompt) for prompt in prompts])  # all but the newest token, which is read again
    for (lengths, tokens, logits), emitted in zip(target.passes, result.step_tokens, strict=True):
        assert torch.equal(lengths, committed)
        for row, text in enumerate(texts):
            read = torch.cat([text[: lengths[row]], tokens[row]])  # with the draft tokens, accepted or not
            assert torch.allclose(logits[row], uncached(read)[lengths[row] :], atol=1e-4)
        committed = committed + torch.tensor(emitted)
