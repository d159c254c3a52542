"""Weights in, logits out: one forward function for prefill, decoding and verification over a ragged batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers

from specdec_lib.config import INT8
from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.models.attention import NAME
from specdec_lib.models.cache import RaggedCache
from specdec_lib.models.engines.engine import EagerEngine, Engine, Step
from specdec_lib.models.engines.inductor import InductorEngine, NotCompiledError
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.engines.row_by_row import ALONE, RowByRowEngine
from specdec_lib.models.loading.architectures import (
    context_length,
    fix_frequencies,
    text_config,
    text_model,
    why_shorter,
)
from specdec_lib.models.loading.faithful import (
    TOLERANCE,
    check_kernels,
    faithful_engine,
    relative_difference,
    some_tokens,
)
from specdec_lib.models.loading.tested_architectures import read_as
from specdec_lib.models.output_layer import output_layer
from specdec_lib.models.translation import Translation

logger = logging.getLogger(__name__)


class LanguageModel:
    """A causal language model over ragged batches.

    Args:
        model: a Hugging Face causal LM, or a toy with the same few attributes.
        feature_layers: layers before the last whose states a draft head reads, each once, in rising order.
        compiled: use the C++ kernels where they can compute this model. Otherwise the model runs eagerly.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        name: str,
        feature_layers: tuple[int, ...] = (),
        *,
        compiled: bool = True,
    ):
        self.model = model.eval().requires_grad_(False)
        self.name, self.compiled = name, compiled
        config = text_config(model.config)
        self.body = text_model(model)
        fix_frequencies(model)
        self.head, self.hidden_size = output_layer(model)
        self.vocab_size: int = config.vocab_size
        self.context_length, self.why_shorter = context_length(model.config), why_shorter(model.config)
        self.device: torch.device = self.head.weight.device
        self.dtype: torch.dtype = self.head.weight.dtype
        self.num_layers: int = config.num_hidden_layers
        self.feature_layers = tuple(layer % self.num_layers for layer in feature_layers)
        if sorted({*self.feature_layers} - {self.num_layers - 1}) != [*self.feature_layers]:
            raise ValueError(
                f"feature_layers are {feature_layers}: name layers before the last, each once, in rising order"
            )
        self.precision = str(self.dtype).removeprefix("torch.")  # or "int8", after `round_to_eight_bits`
        self._parts = self.body, self.head, self.feature_layers, self.context_length
        batched = KernelEngine if compiled and KernelEngine.can_compute(self.body) else EagerEngine
        alone = ALONE.get(read_as(model.config) or "")
        if getattr(config, "_attn_implementation", NAME) != NAME:
            alone = alone or RowByRowEngine
        self._engine_at_load: Engine = (alone or batched)(*self._parts)
        self.active_engine: Engine = self._engine_at_load  # computes the passes; another one after `compile()`
        self.why_not_compiled: str | None = None  # the reason why `compile()` failed
        self.kept: object = None  # what decoding keeps for this model between calls
        self.translation: Translation | None = None  # of a draft whose vocabulary is not its target's

    @property
    def engine(self) -> str:
        """The active engine: "kernels" (our C++), "inductor" (`torch.compile`), "eager", or one of `row_by_row.py`."""
        return self.active_engine.name

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, cache: RaggedCache, counts: torch.Tensor | None = None) -> Step:
        """What the engine computes for `tokens` `[B, m]`; call `cache.commit` with the number of tokens to keep."""
        try:
            return self.active_engine(tokens, cache, counts)
        except NotCompiledError as error:  # shapes that torch.compile refuses; nothing is committed yet
            self._stop_compiling(error)
            return self.active_engine(tokens, cache, counts)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., hidden_size]` to logits `[..., vocab_size]`; float32 from the kernels."""
        return self.active_engine.logits(hidden)

    def new_cache(self, batch_size: int, capacity: int) -> RaggedCache:
        """An empty cache for `batch_size` rows of up to `capacity` tokens each."""
        return self._engine_at_load.new_cache(batch_size, capacity)

    @torch.inference_mode()
    def compile(self) -> None:
        """Use `torch.compile` from now on, if it can do this model and computes the same."""
        tokens = some_tokens(self).view(2, -1)
        expected = self.forward(tokens, self.new_cache(*tokens.shape)).features
        try:
            if not self.active_engine.capturable:
                raise NotCompiledError(f"it is read {self.engine}")
            engine: Engine = InductorEngine(*self._parts)
            found = engine(tokens, self.new_cache(*tokens.shape)).features
            if (difference := relative_difference(found, expected)) > TOLERANCE:
                raise NotCompiledError(f"compiled layers compute something else: off by {difference:.1%}")
            self.active_engine = engine
        except NotCompiledError as error:
            self._stop_compiling(error)

    def round_to_eight_bits(self) -> None:
        """Round every matrix to 8 bits with a factor for each row, for good: another model, at half the bytes.

        ValueError unless the kernels compute this model.
        """
        if not isinstance(self._engine_at_load, KernelEngine):
            reason = why_no_kernels() or "they do not compute its architecture"
            raise ValueError(f"dtype is int8, which only the CPU kernels have, and {reason}: give bfloat16")
        self._engine_at_load.round_to_eight_bits()
        self.precision = INT8

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Within this block, compute with the engine that was chosen at load, without `torch.compile`."""
        engine, self.active_engine = self.active_engine, self._engine_at_load
        try:
            yield
        finally:
            self.active_engine = engine

    def _stop_compiling(self, error: NotCompiledError) -> None:
        self.active_engine, self.why_not_compiled = self._engine_at_load, str(error)
        logger.warning("%s is not compiled and runs slower (%s)", self.name, error)

    def to(self, device: str) -> LanguageModel:
        """Move the weights, in place."""
        self.model.to(device)
        self.device = self.head.weight.device
        assert self.engine != "kernels" or self.device.type == "cpu", "load a model on the device where it runs"
        return self

    @torch.inference_mode()
    def check_faithful(self) -> None:
        """Take the fastest engine that computes what the model's own code does; ValueError, with why, if none does."""
        kind = faithful_engine(self)
        if isinstance(self._engine_at_load, KernelEngine) and kind is EagerEngine:
            check_kernels(self)
        elif type(self._engine_at_load) is not kind:
            self._engine_at_load = self.active_engine = kind(*self._parts)
