"""What a decoding step costs: bytes and operations against what a machine can do. Every number here is predicted.

A pass over `rows` = batch x tokens takes the time of its matrix products, of attention, of starting its operations, and
of what the engine adds. Matrix products come from a table measured by number of rows (`calibrated`), or from a
roofline: the longer of reading the weights and multiplying them (`gpus`). Attention reads the keys and values of each
row of the batch once, and computes with them for each of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from specdec_lib.models.shape import ModelShape

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5 + 2 * 2 / 32}  # int4: groups of 32
VOCABULARY_PASSES = 12  # of a step in PyTorch over each probability: softmax, its checks, residual, choice
MatrixSeconds = Callable[[ModelShape, int], float]  # of all products of a pass over that many rows


@dataclass(frozen=True)
class Machine:
    """What a machine can do, and what a pass on it costs besides bytes and operations; seconds and bytes.

    What the engine adds is fitted, or assumed to be nothing. Between a pass over one token and one over `verify_tokens`
    it grows evenly, and no more beyond.
    """

    name: str
    matrix_seconds: MatrixSeconds
    read_bytes_per_second: float
    operations_per_second: float  # of attention
    bytes_per_number: float  # of cached keys and values
    layer_seconds: float = 0.0  # between the operations of a layer; where it is fitted, a part of what the engine adds
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
        """Seconds of a pass of the target over `tokens` tokens in each of `batch` rows after `context` tokens."""
        added = self.verify_pass_seconds - self.decode_pass_seconds
        between = min(1.0, (tokens - 1) / (self.verify_tokens - 1))
        return self._bare(shape, batch, tokens, context) + self.decode_pass_seconds + between * added

    def propose(
        self, shape: ModelShape, batch: int, num_draft_tokens: int, context: float, first: int = 2, chains: int = 1
    ) -> float:
        """Seconds to draft `chains` of these tokens: the first pass reads `first` tokens a row, later ones `chains`."""
        again = self._bare(shape, batch, chains, context, self.draft_matrix_seconds)
        bare = self._bare(shape, batch, first, context, self._first_draft) + (num_draft_tokens - 1) * again
        choices = num_draft_tokens * self._probabilities(shape, batch * chains)
        return bare + choices + (num_draft_tokens + 1) * self.draft_pass_seconds

    def prefill(self, shape: ModelShape, batch: int, tokens: int) -> float:
        """Seconds to read prompts of `tokens` tokens, and the output layer for the last of each."""
        layers, output = replace(shape, output_weights=0), replace(shape, layer_weights=0, expert_weights=0)
        reading = self._bare(layers, batch, tokens, tokens / 2)
        return reading + self.matrix_seconds(output, batch) + self.decode_pass_seconds

    def sampling(self, shape: ModelShape, batch: int, tokens: int) -> float:
        """Seconds of a step outside target and draft, when the target's pass took `tokens` tokens a row."""
        added = self.choose_seconds if tokens == 1 else self.verify_seconds
        return added + self._probabilities(shape, batch * tokens)

    def _first_draft(self, shape: ModelShape, rows: int) -> float:
        """Products of a draft's first pass: fewer bytes make reading faster, but no pass faster than from a cache."""
        from_cache = self.draft_matrix_seconds(shape, rows) if self.draft_matrix_seconds else 0.0
        return max(self.draft_bytes * self.matrix_seconds(shape, rows), from_cache)

    def _probabilities(self, shape: ModelShape, rows: int) -> float:
        scored = shape.output_weights / shape.hidden_size
        return rows * scored * 4 * VOCABULARY_PASSES / self.read_bytes_per_second

    def _bare(
        self, shape: ModelShape, batch: int, tokens: int, context: float, matrix_seconds: MatrixSeconds | None = None
    ) -> float:
        """Products, attention and starts: what follows from counts alone."""
        cached = batch * context * shape.key_values_per_token() * self.bytes_per_number
        operations = batch * tokens * shape.attention_operations(context)
        attention = cached / self.read_bytes_per_second + operations / self.operations_per_second
        products = (matrix_seconds or self.matrix_seconds)(shape, batch * tokens)
        on_device = products + attention + self.layer_seconds * shape.num_layers
        return max(on_device, self.host_layer_seconds * shape.num_layers)


@dataclass(frozen=True)
class StepCosts:
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
    machine: Machine,
    target: ModelShape,
    draft: ModelShape | None,
    *,
    batch: int,
    num_draft_tokens: int,
    context: float,
    draft_machine: Machine | None = None,
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
