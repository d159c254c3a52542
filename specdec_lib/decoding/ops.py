"""What computes the small operations of a step: plain PyTorch, C++ on CPUs or Triton on GPUs.

Chosen once, when a call begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import ClassVar

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.proposers.lookup import copy_continuation
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.sampling import RandomOps, invert, probabilities
from specdec_lib.decoding.verification import Verification, chance_of
from specdec_lib.kernels import ops as cpp
from specdec_lib.kernels.gpu import ops as triton
from specdec_lib.methods import VerificationRule
from specdec_lib.models.runner import LanguageModel

SMALLEST_VOCABULARY = 1024  # tokens: for fewer, PyTorch's operators cost nothing
VerifyStep = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Verification]


@dataclass(frozen=True)
class PlainOps(RandomOps):
    """Plain PyTorch, on any device and in any precision: what the kernels are tested against."""

    sampling: SamplingConfig
    drafts_in_one_call = False  # whether all tokens of a draft head come from one call of the kernels
    host_may_branch = True  # whether Python may look at the value of a tensor, where that costs nothing

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:  # [..., V] -> [..., V]
        """What `sampling` makes of logits."""
        return probabilities(logits, self.sampling)

    def choose(self, probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:  # [..., V], [...] -> [...]
        """The next token from what `probabilities` gave; greedy looks at no number."""
        return probs.argmax(dim=-1) if self.sampling.temperature == 0 else self.invert(probs, uniforms)

    def choose_among(self, ids: torch.Tensor, probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """The next token where `probs` `[..., n]` are those of the tokens `ids` `[n]` alone."""
        return ids[self.choose(probs, uniforms)]

    def verification(self, rule: VerificationRule) -> VerifyStep:
        """The function that verifies by `rule`."""
        return partial(rule.load(), ops=self)

    def append(
        self,
        rows: Rows,
        counters: Counters | None,
        draft_tokens: torch.Tensor,  # [B, m], at most gamma of them
        draft_probs: torch.Tensor,  # [B, m, V]
        target_probs: torch.Tensor,  # [B, m+1, V]; a NaN makes all V of them NaN
        verification: Verification,
    ) -> None:
        """Append what was accepted and the token after it, and write the step's report; count what was verified."""
        rows.saw_nan |= target_probs[:, :, 0].isnan().any()
        rows.append(draft_tokens, *verification)
        if counters is not None:
            draft_chance = chance_of(draft_tokens, draft_probs)
            rows.saw_nan |= draft_chance.isnan().any()
            counters.count(rows, draft_chance > 0, verification.num_accepted)
        rows.write_report()

    def copy_continuation(
        self, rows: Rows, longest: int, shortest: int, num_draft_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `lookup.copy_continuation`."""
        return copy_continuation(rows, longest, shortest, num_draft_tokens)


@dataclass(frozen=True)
class KernelOps(PlainOps):
    """Kernels of our own: one call or two where PyTorch takes dozens of operators. Top-k and top-p are plain.

    Attributes:
        kernels: a module with `probabilities`, `draw`, `append`, and some of what `VerificationRule.kernel` names.
    """

    kernels: ClassVar[ModuleType]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        if (self.sampling.top_k, self.sampling.top_p) != (0, 1):
            return super().probabilities(logits)
        return self.kernels.probabilities(logits, self.sampling.temperature)

    def invert(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return self.kernels.draw(weights, uniforms)

    def verification(self, rule: VerificationRule) -> VerifyStep:
        kernel = getattr(self.kernels, rule.kernel or "", None)
        if kernel is None:
            return super().verification(rule)
        return lambda *tensors: Verification(*kernel(*tensors))

    def append(
        self,
        rows: Rows,
        counters: Counters | None,
        draft_tokens: torch.Tensor,
        draft_probs: torch.Tensor,
        target_probs: torch.Tensor,
        verification: Verification,
    ) -> None:
        state = rows.tokens, rows.lengths, rows.ends, rows.done, rows.stop_token_ids, rows.saw_nan
        counts = rows.report[:0] if counters is None else counters.counts
        outcome = rows.num_emitted, rows.num_tested, counts, rows.report
        self.kernels.append([*state, *outcome], draft_tokens, draft_probs, target_probs, *verification)


@dataclass(frozen=True)
class TritonOps(KernelOps):
    """Kernels for GPUs, in the precision of the plain operations. A row's results do not depend on the other rows."""

    kernels: ClassVar[ModuleType] = triton


@dataclass(frozen=True)
class CppOps(KernelOps):
    """Kernels for CPUs, on float32 probabilities."""

    kernels: ClassVar[ModuleType] = cpp
    drafts_in_one_call = True

    def choose(self, probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return self.invert(probs, uniforms)  # of a one-hot any number finds the one, faster than argmax does

    def invert(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return super().invert(weights, uniforms) if weights.dtype == torch.float32 else invert(weights, uniforms)

    def copy_continuation(
        self, rows: Rows, longest: int, shortest: int, num_draft_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return cpp.lookup(rows.tokens, rows.lengths, longest, shortest, num_draft_tokens, rows.vocab_size)


def choose_ops(target: LanguageModel, sampling: SamplingConfig) -> PlainOps:
    """Triton on a GPU that has it, C++ for vocabularies worth it on a CPU that has the kernels, else plain PyTorch."""
    if triton.available(target.device):
        return TritonOps(sampling)
    worth_it = target.device.type == "cpu" and target.vocab_size >= SMALLEST_VOCABULARY
    served = worth_it and target.dtype != torch.float64 and cpp.available()
    return CppOps(sampling) if served else PlainOps(sampling)
