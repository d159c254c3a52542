"""Autoregressive decoding: one target pass for every token. What speculative decoding is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.sampling import choose, probabilities
from specdec_lib.decoding.state import DecodeState, check_generator, check_prompts
from specdec_lib.decoding.step_loop import run_steps
from specdec_lib.decoding.streams import RowStreams
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.runner import LanguageModel


@torch.inference_mode()
def autoregressive_decode(
    target: LanguageModel,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator,
    stop_token_ids: Sequence[int] = (),
) -> DecodeResult:
    """Decode a ragged batch one token at a time.

    Args:
        prompts: B one-dimensional int64 tensors of token ids.
        max_new_tokens: tokens per row; fewer only where a stop token ends the row.
        generator: on the target's device; the only source of randomness. Each row has a stream of its own: by default
            numbered by its place in the batch; `RowStreams` name them, so that a row is decoded again in other company.
        stop_token_ids: a row ends with the first of these; the stop token itself is returned.

    Raises:
        ValueError: a prompt that cannot be decoded (empty, too long, unknown token), or NaN logits, naming the step.
    """
    check_generator(generator, target)
    check_prompts(target, prompts, max_new_tokens, stop_token_ids)
    step = run_steps(
        lambda state, streams: BaselineStep(target, state, sampling, streams),
        target,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        slack=1,
        generator=generator,
        capture_key=("autoregressive", sampling),
    )
    return decode_result(step.state)


class BaselineStep:
    """One target pass, and one token for every row."""

    def __init__(self, target: LanguageModel, state: DecodeState, sampling: SamplingConfig, streams: RowStreams):
        self.target, self.state, self.sampling, self.streams = target, state, sampling, streams

    def start(self) -> None:
        self.cache = prefill(self.target, self.state, self.sampling, self.streams)

    def __call__(self) -> None:
        state = self.state
        self.cache.set_lengths(state.lengths - 1, state.max_length - 1)
        step = self.target.forward(state.last_token(), self.cache)
        probs = probabilities(self.target.logits(step.hidden), self.sampling)  # [B, 1, V]
        self.streams.next_passage()
        state.emit(choose(probs, self.sampling, self.streams), probs)


def prefill(
    target: LanguageModel,
    state: DecodeState,
    sampling: SamplingConfig,
    generator: torch.Generator,
    also: Callable[[int, int, torch.Tensor], None] = lambda start, end, features: None,
) -> RaggedStaticCache:
    """Read the prompts and emit the first token of every row; `also` is handed each chunk and its features."""
    cache = state.new_cache(target, "target")
    last = state.prompt_lengths - 1
    hidden = features = torch.empty(0)
    for start, end in state.prompt_chunks():
        counts = state.prompt_tokens_in(start, end)
        step = target.forward(state.tokens[:, start:end], cache, counts)
        cache.commit(counts, at_most=end - start)
        here = (last - start).clamp(0, end - start - 1)[:, None, None]
        newer = (last >= start)[:, None, None]
        chunk_hidden = step.hidden.gather(1, here.expand(-1, 1, step.hidden.shape[-1]))
        chunk_features = step.features.gather(1, here.expand(-1, 1, step.features.shape[-1]))
        hidden = chunk_hidden if start == 0 else torch.where(newer, chunk_hidden, hidden)
        features = chunk_features if start == 0 else torch.where(newer, chunk_features, features)
        also(start, end, step.features)
    probs = probabilities(target.logits(hidden), sampling)  # [B, 1, V]
    state.emit(choose(probs, sampling, generator), probs)
    state.features[:, :1].copy_(features)  # those behind it are of tokens that are read again when they are known
    return cache


def decode_result(state: DecodeState) -> DecodeResult:
    """The tokens, times and counts of a finished state."""
    step_s = [after - before for before, after in zip(state.times[:-1], state.times[1:], strict=True)]
    steps, *counts = state.counts.tolist()
    gamma = state.slack - 1
    return DecodeResult(
        tokens=state.output(),
        ttft_s=state.times[0],
        step_s=step_s,
        step_tokens=state.emitted[1:],
        steps=steps,
        drafted=sum(counts[:gamma]),
        tested_by_position=counts[gamma : 2 * gamma],
        accepted_by_position=counts[2 * gamma :],
        capture_s=state.capture_s,
        replayed=state.replayed,
    )
