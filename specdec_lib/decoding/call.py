"""What the parts of one decoding call share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.draft_length import FIXED, DraftLength
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.uniforms import Uniforms
from specdec_lib.models.cache import RaggedCache
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.runner import LanguageModel


@dataclass
class Call:
    """The target, the rows and how to compute; what a step and a proposer are started with.

    Attributes:
        num_draft_tokens: gamma, 0 for the baseline.
        ops: plain PyTorch or C++, chosen when the call begins.
        uniforms: the random numbers of the call.
        caches: where captured steps keep the caches that they share; None where each call makes its own.
        host_may_branch: whether Python may look at the value of a tensor in a step: on a CPU, in a step that is not
            captured, unless the ops forbid it.
        cache: the target's, once the prompts are read.
        length: how many of gamma tokens a row drafts; `SpeculativeStep.start` starts it.
    """

    target: LanguageModel
    sampling: SamplingConfig
    num_draft_tokens: int
    ops: PlainOps
    rows: Rows
    counters: Counters
    uniforms: Uniforms
    caches: dict[object, RaggedCache] | None = None
    length: DraftLength = FIXED
    cache: RaggedCache | None = None

    @property
    def host_may_branch(self) -> bool:
        return self.caches is None and self.rows.tokens.device.type == "cpu" and self.ops.host_may_branch

    def new_cache(self, model: LanguageModel | DraftHead, role: str, capacity: int | None = None) -> Any:
        """An empty cache of `model`, of its kind; a captured step gets the same one whenever it asks for `role`.

        Args:
            capacity: positions of each row, by default those of `rows`.
        """
        capacity = capacity or self.rows.capacity
        if self.caches is None:
            return model.new_cache(self.rows.batch_size, capacity)
        if (role, model) not in self.caches:
            self.caches[role, model] = model.new_cache(self.rows.batch_size, capacity)
        cache = self.caches[role, model]
        cache.set_lengths(torch.zeros_like(self.rows.lengths), 0)
        return cache
