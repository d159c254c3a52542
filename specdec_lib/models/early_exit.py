"""The first layers of a model as a model: the same modules, with the same last norm and output layer."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from specdec_lib.config import INT8
from specdec_lib.models.runner import LanguageModel

ENGINES = ("eager", "kernels", "inductor")  # whose cache has keys and values layer by layer


def early_exit(model: LanguageModel, num_layers: int) -> LanguageModel:
    """What `model` says after its first `num_layers` layers; no weight is copied.

    Raises:
        ValueError: it has no more layers than that, or cannot do without the others.
    """
    layers: Any = getattr(model.body, "layers", ())
    if layers and (model.body is not model.model.base_model or model.engine not in ENGINES or model.precision == INT8):
        raise ValueError(
            f"{model.name} cannot draft with its first layers: that needs a model of text alone, in its own precision, "
            f"on one of the engines {', '.join(ENGINES)}"
        )
    if not 1 <= num_layers < len(layers):
        raise ValueError(
            f"{model.name} cannot draft with the first {num_layers} of its {max(len(layers), 1)} layers: "
            "give at least 1, and fewer than it has"
        )
    config = copy.deepcopy(model.model.config)
    config.num_hidden_layers = num_layers
    body = _with(model.body, layers=layers[:num_layers])
    whole = _with(model.model, **{model.model.base_model_prefix: body})
    body.config = whole.config = config
    return LanguageModel(whole, f"{model.name}, {num_layers} layers", compiled=model.compiled)


def _with(module: nn.Module, **children: nn.Module) -> Any:
    """The same module but for these of its children; the original stays as it is."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other
