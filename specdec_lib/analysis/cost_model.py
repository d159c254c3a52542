"""What a decoding step costs: bytes and operations against what a machine can do. Every number here is predicted.

A pass over `rows` = batch x tokens takes the time of its matrix products, of attention, of starting its operations, and
of what the engine adds, which is fitted or assumed to be nothing: to a pass that decodes and to one that verifies,
evenly more between the two, and no more beyond. Attention reads the keys and values of each row of the batch once, and
computes with them for each of its tokens. Matrix products come from a table measured by number of rows (`calibration`),
or from a roofline: the longer of reading the weights and multiplying them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specdec_lib.machine.calibration import Calibration
from specdec_lib.models.shape import ModelShape

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5 + 2 * 2 / 32}  # int4: groups of 32
VOCABULARY_PASSES = 12  # of a step in PyTorch over each probability: softmax, its checks, residual, choice
MatrixSeconds = Callable[[ModelShape, int], float]  # of all products of a pass over that many rows


@dataclass(frozen=True)
class Machine:
    """What a machine can do, and what a pass on it costs beside bytes and operations; seconds and bytes."""

    name: str
    matrix_seconds: MatrixSeconds
    read_bytes_per_second: float
    operations_per_second: float  # of attention
    bytes_per_number: float  # of cached keys and values
    call_seconds: float  # between one operation and the next
    calls_per_layer: float
    cache_bytes_per_second: float | None = None  # of cached keys and values, where they are not read like all else
    host_layer_seconds: float = 0.0  # for the host to start a layer's operations while others run: the longer counts
    decode_pass_seconds: float = 0.0  # what the engine adds to a pass of the target over one token a row, or a prefill
    verify_pass_seconds: float = 0.0  # the same over `verify_tokens`, and over more
    verify_tokens: int = 2
    draft_matrix_seconds: MatrixSeconds | None = None  # of a draft's later passes, if a cache holds its weights by then
    draft_bytes: float = 1.0  # of a draft's weight, over those of a target's: what its first pass reads
    draft_pass_seconds: float = 0.0  # what it adds to a pass of the draft; once more for the proposal as a whole
    choose_seconds: float = 0.0  # what it adds to a step of the baseline, outside the pass
    verify_seconds: float = 0.0  # the same to a speculative step, outside target and draft

    def pass_(self, shape: ModelShape, batch: int, tokens: int, context: float) -> float:
        """Seconds of a pass over `tokens` tokens in each of `batch` rows behind `context` tokens, as the target."""
        added = self.verify_pass_seconds - self.decode_pass_seconds
        bare = self._bare(shape, batch, tokens, context)
        between = min(1.0, (tokens - 1) / (self.verify_tokens - 1))
        return bare + self.decode_pass_seconds + between * added

    def propose(self, shape: ModelShape, batch: int, num_draft_tokens: int, context: float, first: int = 2) -> float:
        """Seconds to draft with a model of this shape: the first pass reads `first` tokens a row, the others one."""
        again = self._bare(shape, batch, 1, context, self.draft_matrix_seconds)
        bare = self._bare(shape, batch, first, context, self._first_draft) + (num_draft_tokens - 1) * again
        choices = num_draft_tokens * self._probabilities(shape, batch)
        return bare + choices + (num_draft_tokens + 1) * self.draft_pass_seconds

    def _first_draft(self, shape: ModelShape, rows: int) -> float:
        """Products of a draft's first pass: fewer bytes save reading, and no computing that a cache cannot save."""
        from_cache = self.draft_matrix_seconds(shape, rows) if self.draft_matrix_seconds else 0.0
        return max(self.draft_bytes * self.matrix_seconds(shape, rows), from_cache)

    def prefill(self, shape: ModelShape, batch: int, tokens: int) -> float:
        """Seconds to read prompts of `tokens` tokens, and the output layer for the last of each."""
        layers, output = replace(shape, output_weights=0), replace(shape, layer_weights=0, expert_weights=0)
        reading = self._bare(layers, batch, tokens, tokens / 2)
        return reading + self.matrix_seconds(output, batch) + self.decode_pass_seconds

    def sampling(self, shape: ModelShape, batch: int, tokens: int) -> float:
        """Seconds of a step outside target and draft, when the target's pass took `tokens` tokens a row."""
        added = self.choose_seconds if tokens == 1 else self.verify_seconds
        return added + self._probabilities(shape, batch * tokens)

    def _probabilities(self, shape: ModelShape, rows: int) -> float:
        scored = shape.output_weights / shape.hidden_size
        return rows * scored * 4 * VOCABULARY_PASSES / self.read_bytes_per_second

    def _bare(
        self, shape: ModelShape, batch: int, tokens: int, context: float, matrix_seconds: MatrixSeconds | None = None
    ) -> float:
        """Products, attention and starts: what follows from counts alone."""
        cached = batch * context * shape.key_values_per_token() * self.bytes_per_number
        operations = batch * tokens * shape.attention_operations(context)
        reading = cached / (self.cache_bytes_per_second or self.read_bytes_per_second)
        attention = reading + operations / self.operations_per_second
        starts = self.call_seconds * self.calls_per_layer * shape.num_layers
        products = (matrix_seconds or self.matrix_seconds)(shape, batch * tokens)
        work = products + attention + starts
        return max(work, self.host_layer_seconds * shape.num_layers)


@dataclass(frozen=True)
class SpeculativeStep:
    """The pieces of one decoding step, in seconds, and what they make of an acceptance."""

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


def speculative_step(
    machine: Machine,
    target: ModelShape,
    draft: ModelShape | None,
    *,
    batch: int,
    num_draft_tokens: int,
    context: float,
    first: int = 2,
    draft_machine: Machine | None = None,
    prompt: int = 0,
) -> SpeculativeStep:
    """The predicted pieces of a step; without a draft, drafting is free, as n-gram lookup nearly is.

    Args:
        first: tokens that the draft's first pass reads.
        draft_machine: where the draft runs, if not where the target does.
        prompt: tokens of each prompt; 0 leaves the prefills out.
    """
    drafting = draft_prefill = target_prefill = 0.0
    beside = draft_machine or machine
    if draft is not None:
        drafting = beside.propose(draft, batch, num_draft_tokens, context, first)
    if prompt:
        target_prefill = machine.prefill(target, batch, prompt) + machine.sampling(target, batch, 1)
        draft_prefill = 0.0 if draft is None else beside.prefill(draft, batch, prompt)
    return SpeculativeStep(
        baseline_pass=machine.pass_(target, batch, 1, context),
        verify_pass=machine.pass_(target, batch, num_draft_tokens + 1, context),
        propose=drafting,
        baseline_sampling=machine.sampling(target, batch, 1),
        sampling=machine.sampling(target, batch, num_draft_tokens + 1),
        target_prefill=target_prefill,
        draft_prefill=draft_prefill,
    )


def calibrated_machine(calibration: Calibration) -> Machine:
    """The machine that was measured, before anything of the engine's own overhead is fitted."""
    rows, again = calibration.matrix_rows, calibration.draft_seconds_per_weight
    matrix_seconds, last_slope = _from_table(rows, calibration.matrix_seconds_per_weight)
    return Machine(
        name=calibration.device_name,
        matrix_seconds=matrix_seconds,
        draft_matrix_seconds=_from_table(rows, again)[0] if again else None,
        draft_bytes=(calibration.draft_bytes_per_weight or BYTES[calibration.dtype]) / BYTES[calibration.dtype],
        read_bytes_per_second=calibration.read_bytes_per_second,
        operations_per_second=calibration.attention_operations_per_second or 2 / last_slope,
        cache_bytes_per_second=calibration.cache_bytes_per_second,
        bytes_per_number=BYTES[calibration.dtype],
        call_seconds=calibration.call_seconds,
        calls_per_layer=calibration.calls_per_pass / calibration.target.num_layers,
    )


def _from_table(rows: Sequence[int], seconds_per_weight: Sequence[float]) -> tuple[MatrixSeconds, float]:
    """The time of all products of a pass from a measured table, and seconds per weight for each row beyond it.

    A product of fewer rows never costs more than one of more rows: what was measured so is noise, and is cut.
    """
    per_weight = np.minimum.accumulate(np.array(seconds_per_weight)[::-1])[::-1]
    slope = max(float((per_weight[-1] - per_weight[-2]) / (rows[-1] - rows[-2])), 1e-18)

    def matrix_seconds(shape: ModelShape, count: int) -> float:
        beyond = max(count - rows[-1], 0) * slope
        return float(np.interp(count, rows, per_weight) + beyond) * shape.weights_read(count)

    return matrix_seconds, slope


def fitted(
    machine: Machine,
    target: ModelShape,
    draft: ModelShape,
    milliseconds: Callable[[str, int], float],
    *,
    context: float,
    num_draft_tokens: int,
    first: int,
) -> Machine:
    """The machine with the engine's overhead, from batch 1, one context, and decoding with one gamma only.

    Five numbers are fitted: what the engine adds to a pass of the target that decodes and to one that verifies, to a
    pass of the draft, to a choice and to a verification. The first three may be negative: an engine that computes a
    whole pass at once is spared the starts that the products of the calibration, one by one, have paid for.

    Args:
        milliseconds: measured cost by model ("target", "draft", "sampling") and number of tokens, at batch 1.
        first: tokens that the draft's first pass reads.
    """
    verified = num_draft_tokens + 1
    drafting = milliseconds("draft", num_draft_tokens) / 1e3
    drafting -= machine.propose(draft, 1, num_draft_tokens, context, first)
    decoding, verifying = (
        milliseconds("target", tokens) / 1e3 - machine.pass_(target, 1, tokens, context) for tokens in (1, verified)
    )
    return replace(
        machine,
        decode_pass_seconds=decoding,
        verify_pass_seconds=verifying,
        verify_tokens=verified,
        draft_pass_seconds=drafting / (num_draft_tokens + 1),
        choose_seconds=milliseconds("sampling", 1) / 1e3 - machine.sampling(target, 1, 1),
        verify_seconds=milliseconds("sampling", verified) / 1e3 - machine.sampling(target, 1, verified),
    )
