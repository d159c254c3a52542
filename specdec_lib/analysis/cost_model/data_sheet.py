"""What a step costs on a GPU that nobody here has run on: counted work over what the data sheet promises.

The work is counted in a rehearsal (`hardware/costs.csv`). What share of the data sheet decoding reaches, and what
starting a kernel costs, are assumptions with a range. Every number is predicted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

from specdec_lib.config import PREFILL_CHUNK
from specdec_lib.hardware.catalog import Gpu
from specdec_lib.hardware.costs import (
    ANY,
    BYTES,
    CHOOSE,
    COUNTED,
    DECODE,
    DRAFT_CHOICE,
    OUTPUT,
    SEVERAL,
    VERIFICATION,
    Counts,
    counted,
    stated,
    weights_read,
)


class Range(NamedTuple):
    """A guess with the least and the most that it may be."""

    low: float
    value: float
    high: float


BANDWIDTH_SHARE = Range(0.70, 0.80, 0.90)  # of the data sheet; a plain copy reaches 0.90 on an H100 and an H200
OPERATIONS_SHARE = Range(0.60, 0.70, 0.81)  # a large bf16 product reaches 0.81 on an H100
GAP_SECONDS = Range(1.5e-6, 2.5e-6, 4e-6)  # between kernels on the device, however they were started
ALL_REDUCE_SECONDS = 10e-6  # of a small tensor over NVLink; two in each layer of a model that is split


class Engine(NamedTuple):
    """How kernels are started: what a compiler joins, and what the host takes for each while earlier ones run."""

    joins_layers: bool
    joins_choices: bool  # everything of a step outside of target and draft
    start_seconds: Range


OURS = "specdec_lib"  # compiled layers, plain operators around them, all in a captured graph
ENGINES = {  # how an engine starts its kernels
    OURS: Engine(True, False, Range(0, 0, 0)),  # a captured graph is started at once
    "graph": Engine(True, True, Range(0, 0, 0)),
    "eager": Engine(False, False, Range(6e-6, 10e-6, 16e-6)),  # one kernel after another
}


@dataclass(frozen=True)
class Corner:
    """One choice within every range."""

    bandwidth_share: float
    operations_share: float
    gap_seconds: float
    start_seconds: float


def corners(engine: str) -> list[Corner]:
    """The middle of all ranges first, then their corners; what starts cost is low or high on device and host alike."""
    starts = list(zip(GAP_SECONDS, ENGINES[engine].start_seconds, strict=True))
    ends = itertools.product(BANDWIDTH_SHARE[::2], OPERATIONS_SHARE[::2], starts[::2])
    middle = Corner(BANDWIDTH_SHARE.value, OPERATIONS_SHARE.value, *starts[1])
    return [middle, *(Corner(read, operations, *start) for read, operations, start in ends)]


@dataclass(frozen=True)
class DataSheet:
    """A GPU, or several that split every matrix and all heads, and one choice of assumptions.

    Models are named as in `hardware/models.yaml`. All times are in seconds.
    """

    gpu: Gpu
    corner: Corner
    dtype: str  # of weights that the checkpoint does not hold in fewer bits
    engine: str = OURS
    num_gpus: int = 1

    def pass_(self, model: str, batch: int, tokens: int, context: float) -> float:
        """A pass over `tokens` tokens in each of `batch` rows after `context` tokens."""
        return self._layers(model, batch, tokens, context) + self._output(model, batch * tokens)

    def propose(self, draft: str, batch: int, num_draft_tokens: int, context: float, chains: int = 1) -> float:
        """A proposal: the first pass reads two tokens of a row, as its last draft may have been accepted.

        Later passes read one of each chain.
        """
        first, again = (self._layers(draft, batch, tokens, context) for tokens in (2, chains))
        token = self._output(draft, batch * chains) + self._choice(DRAFT_CHOICE, draft, batch * chains, 1)
        return first + (num_draft_tokens - 1) * again + num_draft_tokens * token

    def prefill(self, model: str, batch: int, tokens: int) -> float:
        """Prompts of `tokens` tokens, read in chunks, and the output layer for the last of each."""
        starts = range(0, tokens, PREFILL_CHUNK)
        reading = sum(self._layers(model, batch, min(PREFILL_CHUNK, tokens - start), start) for start in starts)
        return reading + self._output(model, batch)

    def sampling(self, model: str, batch: int, tokens: int) -> float:
        """A step outside of target and draft, when the target's pass took `tokens` tokens a row."""
        return self._choice(CHOOSE if tokens == 1 else VERIFICATION, model, batch, tokens)

    def _layers(self, model: str, batch: int, tokens: int, context: float) -> float:
        counts = counted(model, DECODE if tokens == 1 else SEVERAL, batch, tokens, context + tokens)
        split = 2 * ALL_REDUCE_SECONDS * stated(model, "num_hidden_layers") if self.num_gpus > 1 else 0.0
        weights = weights_read(model, counts, self.dtype, batch * tokens)
        return self._seconds(counts, weights, ENGINES[self.engine].joins_layers) + split

    def _output(self, model: str, rows: int) -> float:
        counts = counted(model, OUTPUT, rows, 1, 0)
        weights = counts.weight_bytes * BYTES[self.dtype] / BYTES[COUNTED]
        return self._seconds(counts, weights, ENGINES[self.engine].joins_layers)

    def _choice(self, piece: str, model: str, batch: int, tokens: int) -> float:
        counts = counted(ANY, piece, batch, tokens, stated(model, "vocab_size"))
        return self._seconds(counts, 0.0, ENGINES[self.engine].joins_choices)

    def _seconds(self, counts: Counts, weights: float, joined: bool) -> float:
        """Products take the longer of reading weights and multiplying; what is not split over GPUs, each does whole."""
        read = self.gpu.bandwidth_tb_per_s * 1e12 * self.corner.bandwidth_share
        operations = self.gpu.bf16_tflops * 1e12 * self.corner.operations_share
        products = max(weights / read, counts.product_flops / operations)
        attention = counts.attention_bytes / read + counts.attention_flops / operations
        others = (counts.fused_bytes if joined else counts.other_bytes) / read
        kernels = counts.fused_kernels if joined else counts.kernels
        on_device = (products + attention) / self.num_gpus + others + kernels * self.corner.gap_seconds
        return max(on_device, kernels * self.corner.start_seconds)


class StepCosts(NamedTuple):
    """The pieces of one decoding step, in seconds."""

    baseline_pass: float
    verify_pass: float
    propose: float
    baseline_sampling: float
    sampling: float
    target_prefill: float = 0.0  # with the choice of the first token
    draft_prefill: float = 0.0

    @property
    def baseline(self) -> float:
        """Seconds per token without speculation."""
        return self.baseline_pass + self.baseline_sampling

    @property
    def step(self) -> float:
        """Seconds of a speculative step."""
        return self.verify_pass + self.propose + self.sampling

    def speedup(self, tokens_per_pass: float) -> float:
        """Speedup if a step emits this many tokens a row."""
        return tokens_per_pass * self.baseline / self.step


def step_costs(
    machine: DataSheet,
    target: str,
    draft: str | None,
    *,
    batch: int,
    num_draft_tokens: int,
    context: float,
    draft_machine: DataSheet | None = None,
    prompt: int = 0,
) -> StepCosts:
    """The predicted pieces of a step; without a draft, drafting is free, as n-gram lookup nearly is.

    Args:
        draft_machine: where the draft runs, if not where the target does.
        prompt: tokens of each prompt; 0 leaves the prefills out.
    """
    drafts_on = draft_machine or machine
    return StepCosts(
        baseline_pass=machine.pass_(target, batch, 1, context),
        verify_pass=machine.pass_(target, batch, num_draft_tokens + 1, context),
        propose=drafts_on.propose(draft, batch, num_draft_tokens, context) if draft else 0.0,
        baseline_sampling=machine.sampling(target, batch, 1),
        sampling=machine.sampling(target, batch, num_draft_tokens + 1),
        target_prefill=machine.prefill(target, batch, prompt) + machine.sampling(target, batch, 1) if prompt else 0.0,
        draft_prefill=drafts_on.prefill(draft, batch, prompt) if draft and prompt else 0.0,
    )
