"""What a decoding step costs on a machine that was measured. Every number here is predicted.

A pass over `rows` = batch x tokens takes the time of its matrix products, of attention, and of what the engine adds.
Matrix products come from a table measured by number of rows. Attention reads the keys and values of each row of the
batch once, and computes with them for each of its tokens. That follows from the shape of a model, as the C++ kernels do
no more; what PyTorch's operators do on a GPU is counted (`data_sheet`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specdec_lib.models.shape import ModelShape

VOCABULARY_PASSES = 12  # of a step in PyTorch over each probability: softmax, its checks, residual, choice
MatrixSeconds = Callable[[ModelShape, int], float]  # of all products of a pass over that many rows


@dataclass(frozen=True)
class Machine:
    """What a machine can do, and what a pass on it costs besides bytes and operations; seconds and bytes.

    What the engine adds is fitted. Between a pass over one token and one over `verify_tokens`
    it grows evenly, and no more beyond.
    """

    name: str
    matrix_seconds: MatrixSeconds
    read_bytes_per_second: float
    operations_per_second: float  # of attention
    bytes_per_number: float  # of cached keys and values
    decode_pass_seconds: float = 0.0  # what the engine adds to a pass of the target over one token a row
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

    def propose(self, shape: ModelShape, batch: int, num_draft_tokens: int, context: float, first: int = 2) -> float:
        """Seconds to draft with a model of this shape: the first pass reads `first` tokens a row, the others one."""
        again = self._bare(shape, batch, 1, context, self.draft_matrix_seconds)
        bare = self._bare(shape, batch, first, context, self._first_draft) + (num_draft_tokens - 1) * again
        choices = num_draft_tokens * self._probabilities(shape, batch)
        return bare + choices + (num_draft_tokens + 1) * self.draft_pass_seconds

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
        """Products and attention: what follows from the shape alone."""
        cached = batch * context * shape.key_values_per_token() * self.bytes_per_number
        operations = batch * tokens * shape.attention_operations(context)
        attention = cached / self.read_bytes_per_second + operations / self.operations_per_second
        return attention + (matrix_seconds or self.matrix_seconds)(shape, batch * tokens)
