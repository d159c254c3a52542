"""One captured step, and its pieces captured beside it: what costs of rows are made of whose steps were replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import BaselineStep
from specdec_lib.decoding.proposers import NgramProposer, make_proposer
from specdec_lib.decoding.speculative import SpeculativeStep, Verifier
from specdec_lib.decoding.state import DecodeState, positions_needed
from specdec_lib.decoding.step_loop import PASSAGES, CapturedStep, KeptSteps
from specdec_lib.decoding.streams import CountedStreams
from specdec_lib.machine.stopwatch import CaptureError, Stopwatch, Timer
from specdec_lib.models.pair import Pair

NEW_TOKENS = 3  # of the prefill, of the step that is run before it is captured, and of its first replay


@torch.inference_mode()
def replayed_pieces(
    pair: Pair,
    watch: Stopwatch,
    prompts: Sequence[torch.Tensor],
    tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator,
    verifier: Verifier,
) -> dict[str, Timer]:
    """Capture a step whose target pass takes `tokens` tokens of each row, and its pieces under the same bound.

    All rows are done by then: such a step does the same work and moves nothing, so that it may be replayed at will.

    Args:
        verifier: keeps one token a step; nothing but operators on tensors.

    Returns:
        "step", the whole; "target", its pass and the logits; and of more than one token "draft" and "ngram", proposals.

    Raises:
        CaptureError: some of it cannot be captured.
    """
    assert watch.graphs is not None
    kept, target, gamma = KeptSteps(watch.graphs), pair.target, tokens - 1
    kept.fit(len(prompts), positions_needed(prompts, NEW_TOKENS, tokens))
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "stop_token_ids": ()}
    state = DecodeState(target, prompts, slack=tokens, capacity=kept.capacity, caches=kept.caches, **options)
    streams = CountedStreams(len(prompts), PASSAGES * state.capacity, tokens, target.device)
    proposer = make_proposer("draft", pair)
    step: BaselineStep | SpeculativeStep = BaselineStep(target, state, sampling, streams)
    if gamma > 0:
        step = SpeculativeStep(target, proposer, verifier, state, gamma, sampling, streams)
    captured = CapturedStep(step, streams, kept)
    captured.run(prompts, generator, **options)
    if kept.failure is not None:
        raise CaptureError(kept.failure)
    bound = max(captured.replays)
    state.max_length = bound
    read = state.last_token().repeat(1, tokens)  # [B, tokens]

    def target_pass() -> object:
        step.cache.set_lengths(state.lengths - 1, bound - 1)
        return target.logits(target.forward(read, step.cache).hidden)

    def draft() -> object:
        streams.next_passage()
        return proposer.propose(state, gamma, sampling, streams)

    pieces: dict[str, Callable[[], object]] = {"target": target_pass}
    if gamma > 0:
        lookup = NgramProposer()
        pieces |= {"draft": draft, "ngram": lambda: lookup.propose(state, gamma, sampling, streams)}
    timers = {"step": watch.of_replay(captured.replays[bound])}
    timers |= {name: watch.ready(piece) for name, piece in pieces.items()}
    return {name: _rewound(streams, timer) for name, timer in timers.items()}


def _rewound(streams: CountedStreams, timer: Timer) -> Timer:
    """The timer of a piece that finds random numbers for as many replays as it likes."""

    def run() -> float:
        streams.place.zero_()
        return timer()

    return run
