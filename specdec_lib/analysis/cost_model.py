"""What a decoding step costs: bytes and operations against what a machine can do. Every number here is predicted.

A pass over `rows` = batch x tokens takes the time of its matrix products, of reading the cached keys and values, of
starting its operations, and small terms that are fitted or assumed: the host's work, and work that grows by row.
Matrix products come from a table measured by number of rows (`calibration`), or from a roofline: the longer of reading
the weights and multiplying them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from specdec_lib.measure.calibration import Calibration
from specdec_lib.models.shape import ModelShape

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5 + 2 * 2 / 32}  # int4: groups of 32
VOCABULARY_PASSES = 12  # how often a step reads or writes each probability: softmax, its checks, residual, choice
ROW_EXPONENT = (
    0.5  # work beside products and attention grows slower than the rows; chosen on the embedded pair on a CPU
)
MatrixSeconds = Callable[[ModelShape, int], float]  # of all products of a pass over that many rows


@dataclass(frozen=True)
class Machine:
    """What a machine can do, and what a pass on it costs beside bytes and operations; seconds and bytes."""

    name: str
    matrix_seconds: MatrixSeconds
    read_bytes_per_second: float
    operations_per_second: float  # of attention
    bytes_per_number: float  # of cached keys and values
    call_seconds: float  # to start one operation
    calls_per_layer: float
    overlapped: bool = False  # the host starts operations while earlier ones run, so that the longer of both counts
    pass_seconds: float = 0.0  # the host's work for a pass of the target
    row_seconds: float = 0.0  # of a pass of the target, times rows ** ROW_EXPONENT: neither product nor attention
    draft_pass_seconds: float = 0.0  # the host's work for a pass of the draft; once more for the proposal as a whole
    choose_seconds: float = 0.0  # the host's work in a step of the baseline outside its pass
    verify_seconds: float = 0.0  # the same in a speculative step, outside target and draft

    def pass_(self, shape: ModelShape, batch: int, tokens: int, context: float) -> float:
        """Seconds of a pass over `tokens` tokens in each of `batch` rows behind `context` tokens, as the target."""
        rows = self.row_seconds * (batch * tokens) ** ROW_EXPONENT
        return self._bare(shape, batch, tokens, context) + self.pass_seconds + rows

    def propose(self, shape: ModelShape, batch: int, num_draft_tokens: int, context: float, first: int = 2) -> float:
        """Seconds to draft with a model of this shape: the first pass reads `first` tokens a row, the others one."""
        passes = [first] + [1] * (num_draft_tokens - 1)
        bare = sum(self._bare(shape, batch, tokens, context) for tokens in passes)
        choices = num_draft_tokens * self._probabilities(shape, batch)
        return bare + choices + (num_draft_tokens + 1) * self.draft_pass_seconds

    def prefill(self, shape: ModelShape, batch: int, tokens: int) -> float:
        """Seconds to read prompts of `tokens` tokens, and the output layer for the last of each."""
        layers, output = replace(shape, output_weights=0), replace(shape, layer_weights=0, expert_weights=0)
        reading = self._bare(layers, batch, tokens, tokens / 2)
        return reading + self.matrix_seconds(output, batch) + self.pass_seconds

    def sampling(self, shape: ModelShape, batch: int, tokens: int) -> float:
        """Seconds of a step outside target and draft, when the target's pass took `tokens` tokens a row."""
        host = self.choose_seconds if tokens == 1 else self.verify_seconds
        return host + self._probabilities(shape, batch * tokens)

    def _probabilities(self, shape: ModelShape, rows: int) -> float:
        return rows * shape.vocab_size * 4 * VOCABULARY_PASSES / self.read_bytes_per_second

    def _bare(self, shape: ModelShape, batch: int, tokens: int, context: float) -> float:
        """Products, attention and starts: what follows from counts alone."""
        cached = batch * context * shape.key_values_per_token() * self.bytes_per_number
        operations = batch * tokens * shape.attention_operations(context)
        attention = max(cached / self.read_bytes_per_second, operations / self.operations_per_second)
        starts = self.call_seconds * self.calls_per_layer * shape.num_layers
        work = self.matrix_seconds(shape, batch * tokens) + attention
        return max(work, starts) if self.overlapped else work + starts


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
    """The machine that was measured, before anything of the engine's own overhead is fitted.

    A product of fewer rows never costs more than one of more rows: what was measured so is noise, and is cut.
    """
    rows, measured = np.array(calibration.matrix_rows), np.array(calibration.matrix_seconds_per_weight)
    per_weight = np.minimum.accumulate(measured[::-1])[::-1]
    last_slope = max((per_weight[-1] - per_weight[-2]) / (rows[-1] - rows[-2]), 1e-18)

    def matrix_seconds(shape: ModelShape, count: int) -> float:
        beyond = max(count - rows[-1], 0) * last_slope
        return float(np.interp(count, rows, per_weight) + beyond) * shape.weights_read(count)

    return Machine(
        name=calibration.device_name,
        matrix_seconds=matrix_seconds,
        read_bytes_per_second=calibration.read_bytes_per_second,
        operations_per_second=float(2 / last_slope),
        bytes_per_number=BYTES[calibration.dtype],
        call_seconds=calibration.call_seconds,
        calls_per_layer=calibration.calls_per_pass / calibration.target.num_layers,
    )


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

    Args:
        milliseconds: measured cost by model ("target", "draft", "sampling") and number of tokens, at batch 1.
        first: tokens that the draft's first pass reads.
    """
    verified = num_draft_tokens + 1
    one = milliseconds("target", 1) / 1e3 - machine.pass_(target, 1, 1, context)
    many = milliseconds("target", verified) / 1e3 - machine.pass_(target, 1, verified, context)
    row = (many - one) / (verified**ROW_EXPONENT - 1)
    drafting = milliseconds("draft", num_draft_tokens) / 1e3
    drafting -= machine.propose(draft, 1, num_draft_tokens, context, first)
    return replace(
        machine,
        pass_seconds=one - row,
        row_seconds=row,
        draft_pass_seconds=drafting / (num_draft_tokens + 1),
        choose_seconds=milliseconds("sampling", 1) / 1e3 - machine.sampling(target, 1, 1),
        verify_seconds=milliseconds("sampling", verified) / 1e3 - machine.sampling(target, 1, verified),
    )
