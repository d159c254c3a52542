"""Weights in, logits out: one forward function for prefill, decoding and verification over a ragged batch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.engines import kernels as fused
from specdec_lib.models.engines.inductor import CompiledLayers, NotCompiledError
from specdec_lib.models.tensor_parallel import key_value_heads

KERNEL_DIFFERENCE = 0.1  # of logits, relative: bfloat16 rounds differently when less often
PREFILL_CHUNK = 512  # tokens per prefill pass: bounds the mask and the activations

logger = logging.getLogger(__name__)


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@dataclass(frozen=True)
class Step:
    """What one forward pass over m tokens computed."""

    hidden: torch.Tensor  # [B, m, hidden_size], what the output layer reads
    features: torch.Tensor  # [B, m, F], what a draft head reads: chosen layers' states, then `hidden`


class LanguageModel:
    """A causal language model over ragged batches.

    Args:
        model: a Hugging Face causal LM, or a toy with the same few attributes.
        name: how reports call it.
        feature_layers: layers whose output states a draft head wants to see beside the last one.
        compiled: compute with the C++ kernels where they can; else, and everywhere else, as the model itself does.
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
        self.name = name
        self.body = model.base_model
        self.head = model.get_output_embeddings()
        config = model.config
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.context_length: int = config.max_position_embeddings
        self.device: torch.device = self.head.weight.device
        self.dtype: torch.dtype = self.head.weight.dtype
        self.feature_layers = tuple(layer % len(self.body.layers) for layer in feature_layers) if feature_layers else ()
        if sorted({*self.feature_layers} - {config.num_hidden_layers - 1}) != [*self.feature_layers]:
            raise ValueError(
                f"feature_layers are {feature_layers}: name layers before the last, each once, in rising order"
            )
        self.compiled = compiled
        self.fused = fused.FusedBody.of(self.body) if compiled else None
        self.inductor: CompiledLayers | None = None
        self.why_not_compiled: str | None = None
        self.kept: object = None  # what decoding keeps for this model between calls
        self._tapped: list[torch.Tensor] = []
        for layer in feature_layers:
            self.body.layers[layer].register_forward_hook(lambda _, __, output: self._tapped.append(output))

    @property
    def engine(self) -> str:
        """What computes the layers: our C++ "kernels", "inductor", or "eager", the model as Hugging Face wrote it."""
        return "kernels" if self.fused is not None else "eager" if self.inductor is None else "inductor"

    @torch.inference_mode()
    def compile(self) -> None:
        """Compute the layers with `torch.compile` from now on, if it can and computes the same; some ten seconds."""
        tokens = self._some_tokens().view(2, -1)
        expected = self.forward(tokens, self.new_cache(*tokens.shape)).features
        try:
            self.inductor = CompiledLayers(self.body)
            found = self._compiled_forward(self.inductor, tokens, self.new_cache(*tokens.shape)).features
            if (difference := relative_difference(found, expected)) > KERNEL_DIFFERENCE:
                raise NotCompiledError(f"compiled layers compute something else: off by {difference:.1%}")
        except NotCompiledError as error:
            self._give_up_compiling(error)

    def _give_up_compiling(self, error: Exception) -> None:
        self.inductor = None
        self.why_not_compiled = str(error)
        logger.warning("%s runs as it is, slower: it is not compiled (%s)", self.name, self.why_not_compiled)

    def _some_tokens(self) -> torch.Tensor:  # [1, 64]
        return torch.randint(self.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0)).to(self.device)

    def to(self, device: str) -> LanguageModel:
        """Move the weights, in place."""
        self.model.to(device)
        self.device = self.head.weight.device
        assert self.fused is None or self.device.type == "cpu", "load a model where it is to run"
        return self

    @torch.inference_mode()
    def check_faithful(self) -> None:
        """Compare the way from tokens to logits here with the model's own.

        Raises:
            ValueError: they differ, as with models that scale or cap their logits.
        """
        tokens = self._some_tokens()
        theirs = self._call(self.model, tokens, self.new_cache(*tokens.shape)).logits.float()
        hidden = self._call(self.body, tokens, self.new_cache(*tokens.shape)).last_hidden_state
        if not torch.allclose(self.head(hidden).float(), theirs, rtol=0.01, atol=0.01):
            raise ValueError(f"{self.name} does more to its logits than an output layer: such models are not supported")
        if self.fused is not None:
            ours = self.logits(self.forward(tokens, self.new_cache(*tokens.shape)).hidden)
            difference = relative_difference(ours, theirs)
            assert difference < KERNEL_DIFFERENCE, f"the kernels compute another model: off by {difference:.1%}"

    def new_cache(self, batch_size: int, capacity: int) -> RaggedStaticCache:
        """An empty cache for `batch_size` rows of up to `capacity` tokens each."""
        config = self.model.config
        return RaggedStaticCache(
            batch_size=batch_size,
            capacity=capacity,
            num_layers=config.num_hidden_layers,
            num_heads=key_value_heads(self.model),
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, cache: RaggedStaticCache, counts: torch.Tensor | None = None) -> Step:
        """Run `tokens` `[B, m]` behind each row's committed length.

        Nothing is committed: call `cache.commit` with the number of tokens to keep.

        Args:
            counts: `[B]`, how many of each row's tokens matter; the others are padding, and may be left out.
        """
        if self.fused is not None:
            told = tokens, self._place(tokens, cache), cache, self.feature_layers
            return Step(*(self.fused(*told) if counts is None else self.fused.without_padding(*told, counts.tolist())))
        if self.inductor is not None:
            try:
                return self._compiled_forward(self.inductor, tokens, cache)
            except NotCompiledError as error:  # a shape that it cannot do; nothing is committed yet
                self._give_up_compiling(error)
        self._tapped.clear()
        hidden = self._call(self.body, tokens, cache).last_hidden_state
        features = torch.cat([*self._tapped, hidden], dim=-1) if self._tapped else hidden
        return Step(hidden, features)

    def _compiled_forward(self, layers: CompiledLayers, tokens: torch.Tensor, cache: RaggedStaticCache) -> Step:
        outputs = layers(tokens, self._place(tokens, cache), cache.attention_mask(self.dtype), cache)
        tapped = [outputs[layer] for layer in self.feature_layers]
        return Step(outputs[-1], torch.cat([*tapped, outputs[-1]], dim=-1) if tapped else outputs[-1])

    def _call(self, model: Any, tokens: torch.Tensor, cache: RaggedStaticCache) -> Any:
        positions = self._place(tokens, cache)
        mask = cache.attention_mask(self.dtype)
        return model(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        )

    def _place(self, tokens: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:  # [B, m]
        # Drafts may overshoot the context; what they compute there is not used.
        return cache.place(tokens.shape[1]).clamp(max=self.context_length - 1)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., hidden_size]` to logits `[..., vocab_size]`; float32 from the kernels."""
        if self.fused is not None and isinstance(self.head, torch.nn.Linear):
            return fused.linear(hidden, self.head.weight)
        return self.head(hidden)
