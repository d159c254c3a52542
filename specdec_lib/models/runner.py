"""Weights in, logits out: one forward function for prefill, decoding and verification over a ragged batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers

from specdec_lib.config import INT8
from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.models.attention import own_attention
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.engines.engine import EagerEngine, Engine, Step
from specdec_lib.models.engines.inductor import InductorEngine, NotCompiledError
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.shape import attention_geometry
from specdec_lib.models.tensor_parallel import devices_of

TOLERANCE = 0.1  # relative difference of logits between engines: bfloat16 results depend on where they are rounded
PREFILL_CHUNK = 512  # tokens per prefill pass: bounds the mask and the activations

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
        self.body, self.head = model.base_model, model.get_output_embeddings()
        config = model.config
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.context_length: int = config.max_position_embeddings
        self.device: torch.device = self.head.weight.device
        self.dtype: torch.dtype = self.head.weight.dtype
        self.feature_layers = tuple(layer % config.num_hidden_layers for layer in feature_layers)
        if sorted({*self.feature_layers} - {config.num_hidden_layers - 1}) != [*self.feature_layers]:
            raise ValueError(
                f"feature_layers are {feature_layers}: name layers before the last, each once, in rising order"
            )
        self.precision = str(self.dtype).removeprefix("torch.")  # or "int8", after `round_to_eight_bits`
        self._parts = self.body, self.head, self.feature_layers, self.context_length
        use_kernels = compiled and KernelEngine.can_compute(self.body)
        self._engine_at_load: Engine = (KernelEngine if use_kernels else EagerEngine)(*self._parts)
        self.active_engine: Engine = self._engine_at_load  # computes the passes; another one after `compile()`
        self.why_not_compiled: str | None = None  # the reason why `compile()` failed
        self.kept: object = None  # what decoding keeps for this model between calls

    @property
    def engine(self) -> str:
        """The name of the active engine: "kernels" (our C++), "inductor" (`torch.compile`) or "eager"."""
        return self.active_engine.name

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, cache: RaggedStaticCache, counts: torch.Tensor | None = None) -> Step:
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

    def new_cache(self, batch_size: int, capacity: int) -> RaggedStaticCache:
        """An empty cache for `batch_size` rows of up to `capacity` tokens each."""
        config = self.model.config
        _, heads, head_dim = attention_geometry(config)
        geometry = config.num_hidden_layers, heads // devices_of(self.model), head_dim
        return RaggedStaticCache(batch_size, capacity, *geometry, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def compile(self) -> None:
        """Use `torch.compile` from now on, if it can do this model and computes the same."""
        tokens = self._some_tokens().view(2, -1)
        expected = self.forward(tokens, self.new_cache(*tokens.shape)).features
        try:
            engine = InductorEngine(*self._parts)
            found = engine(tokens, self.new_cache(*tokens.shape)).features
            if (difference := _relative_difference(found, expected)) > TOLERANCE:
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
        """Refuse, by a ValueError, a model whose logits are not what its own code computes, attention included."""
        with own_attention(self.model):
            own = self.model(self._some_tokens(), use_cache=False).logits.float()
        tokens, eager = self._some_tokens(), EagerEngine(self.body, self.head, (), self.context_length)
        theirs = eager.run(self.model, tokens, self.new_cache(*tokens.shape)).logits.float()
        hidden = eager.run(self.body, tokens, self.new_cache(*tokens.shape)).last_hidden_state
        if not torch.allclose(self.head(hidden).float(), theirs, rtol=0.01, atol=0.01):
            raise ValueError(f"{self.name} does more to its logits than an output layer: such models are not supported")
        limit = 1e-3 if self.dtype == torch.float32 else TOLERANCE
        has_sinks = any(name.endswith(".sinks") for name, _ in self.model.named_parameters())
        if has_sinks or _relative_difference(theirs, own) > limit:
            raise ValueError(
                f"{self.name} attends in a way of its own (such as sinks, a window or capped logits): such models are "
                "not supported"
            )
        ours = self.logits(self.forward(tokens, self.new_cache(*tokens.shape)).hidden)
        difference = _relative_difference(ours, theirs)
        assert difference < TOLERANCE, f"engine {self.engine} computes another model: off by {difference:.1%}"

    def _some_tokens(self) -> torch.Tensor:  # [1, 64]
        return torch.randint(self.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0)).to(self.device)


def _relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())
