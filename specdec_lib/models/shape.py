"""The weights, cache entries and operations of one pass of a model, counted for any Hugging Face config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from specdec_lib.hardware.catalog import WEIGHT_FORMS, load_models
from specdec_lib.models.loading.architectures import auto_class, field, text_config, text_model

if TYPE_CHECKING:
    from specdec_lib.models.draft_head import DraftHead
    from specdec_lib.models.runner import LanguageModel


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # the keys of a config that say how many there are


def attention_geometry(config: Any) -> tuple[int, int, int]:
    """The numbers of heads and of key/value heads, and the size of a head, of any Hugging Face config."""
    config = text_config(config)
    heads = field(config, "num_attention_heads") or 1  # recurrent models have none
    shared = field(config, "num_key_value_heads") or heads
    return heads, shared, field(config, "head_dim") or config.hidden_size // heads


@dataclass(frozen=True)
class ModelShape:
    """All that the cost of a pass depends on; counts are of weights, not bytes."""

    name: str
    layer_weights: int  # matrices of all layers, those of all experts of a mixture among them
    output_weights: int  # of the output layer, tied or not
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    embedding_weights: int = 0  # of an input embedding that is not the output layer; a pass reads a few rows
    expert_weights: int = 0  # of the layers' weights, those of experts among which each token chooses
    num_experts: int = 1
    experts_per_token: int = 1
    quantised: str | None = None  # the form of the weights in layers, of WEIGHT_FORMS; None for the model's dtype

    @classmethod
    def from_config(cls, config: Any, name: str = "", quantised: str | None = None) -> Self:
        """Count the weights of any causal language model without making them, from its config or the fields of it."""
        import torch
        from transformers import AutoConfig

        if isinstance(config, Mapping):
            config = AutoConfig.for_model(**copy.deepcopy(dict(config)))
        with torch.device("meta"):
            model = auto_class(config).from_config(config)
        config = text_config(config)
        output = model.get_output_embeddings().weight
        tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        matrices = [
            w for w in text_model(model).parameters() if w.dim() >= 2 and w is not output and id(w) not in tables
        ]
        experts = [w for key, w in text_model(model).named_parameters() if ".experts." in key and w.dim() >= 2]
        heads, key_value_heads, head_dim = attention_geometry(config)
        return cls(
            name=name,
            layer_weights=sum(weight.numel() for weight in matrices),
            output_weights=output.numel(),
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=head_dim,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            embedding_weights=0 if id(output) in tables else model.get_input_embeddings().weight.numel(),
            expert_weights=sum(weight.numel() for weight in experts),
            num_experts=next((n for key in EXPERTS if (n := field(config, key))), 1),
            experts_per_token=field(config, "num_experts_per_tok") or 1,
            quantised=quantised,
        )

    @classmethod
    def of(cls, model: LanguageModel | DraftHead) -> Self:
        """The shape of a loaded model or draft head."""
        from specdec_lib.models.runner import LanguageModel

        if isinstance(model, LanguageModel):
            if hasattr(model.model.config, "model_type"):
                return cls.from_config(model.model.config, model.name)
            size = model.vocab_size  # a toy has an output layer only
            return cls(model.name, 0, size * size, 1, 1, 1, 1, size, size)
        weights = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
        rows = len(model.scored_ids) * model.hidden_size
        return cls(model.name, weights, rows, *model.sizes, model.hidden_size, model.vocab_size)

    def weights_multiplied(self) -> float:
        """Weights that a pass multiplies each token with: half its operations without attention."""
        chosen = self.experts_per_token / self.num_experts
        return self.layer_weights - self.expert_weights * (1 - chosen) + self.output_weights

    def bytes_read(self, rows: int, bytes_per_weight: float) -> float:
        """Of weights, by a pass over so many rows, batch times tokens.

        Args:
            bytes_per_weight: of what is not quantised.
        """
        missed = (1 - self.experts_per_token / self.num_experts) ** rows if self.expert_weights else 0.0
        return self._bytes(bytes_per_weight, 1 - missed)

    def bytes_kept(self, bytes_per_weight: float) -> float:
        """Of weights in memory."""
        return self._bytes(bytes_per_weight, 1.0) + self.embedding_weights * bytes_per_weight

    def _bytes(self, bytes_per_weight: float, share_of_experts: float) -> float:
        """Layers and output layer, with so many of the experts: each as likely to be chosen as any other."""
        of_layer = of_expert = bytes_per_weight
        if self.quantised:
            form = WEIGHT_FORMS[self.quantised]
            of_layer, of_expert = (bytes_per_weight if form.only_experts else form[0]), form[0]
        shared = self.layer_weights - self.expert_weights
        experts = self.expert_weights * share_of_experts
        return shared * of_layer + experts * of_expert + self.output_weights * bytes_per_weight

    def key_values_per_token(self) -> int:
        """Numbers in the cache for each token."""
        return 2 * self.num_layers * self.num_key_value_heads * self.head_dim

    def attention_operations(self, context: float) -> float:
        """Arithmetic operations of one token's attention to `context` tokens: a product each for keys and values."""
        return 4 * self.num_layers * self.num_heads * self.head_dim * context


@cache
def known_shape(name: str) -> ModelShape:
    """The shape of a model in `hardware/models.yaml`; ValueError if there is no such model."""
    models = load_models()
    if name not in models:
        known = ", ".join(models)
        raise ValueError(f"unknown model {name!r}: choose one of {known}, or add it to hardware/models.yaml")
    return ModelShape.from_config(models[name].config, name, models[name].quantised)
