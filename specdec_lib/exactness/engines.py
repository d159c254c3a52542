"""The engine's ways of computing a model, put before the same enumeration: as it is written, kernels, `torch.compile`.

A toy's table has no layers to compile, so the subjects are Llamas of one layer. They are in float64, where all ways
agree to rounding, but for the kernels, which know bfloat16 alone: there a law is exact because a row's logits have the
same bits whatever is computed beside it. What `torch.compile` made is compared with the law of the model as written.
On a GPU the steps of what is compiled are captured, and the enumeration takes the replays.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers import ModelProposer
from specdec_lib.exactness.adversaries import FILTERS, PLAIN, PROMPTS, enumeration_line
from specdec_lib.exactness.subjects import tiny_llamas
from specdec_lib.models.runner import LanguageModel

ENGINES = ("eager", "kernels", "inductor")
SETTINGS = ((1, PLAIN), (2, FILTERS[1]), (2, SamplingConfig(2.0, top_p=0.9)))  # gamma and filters
THOROUGH = (*SETTINGS, (2, PLAIN), (3, FILTERS[1]))
VOCABULARY = 4  # the least that the kernels multiply


def path_table(device: str, thorough: bool = False, engines: tuple[str, ...] = ENGINES) -> pd.DataFrame:
    """Enumerate a tiny Llama on each of the engines that this machine has.

    Returns:
        lines as those of `exactness_adversaries.enumeration_table`.
    """
    lines = []
    for target, draft in path_pairs(device, engines):
        for gamma, sampling in THOROUGH if thorough else SETTINGS:
            line = enumeration_line(target, ModelProposer(draft), PROMPTS, gamma, sampling)
            lines.append({"pair": target.name} | line)
    return pd.DataFrame(lines)


def path_pairs(device: str, engines: tuple[str, ...] = ENGINES) -> Iterator[tuple[LanguageModel, LanguageModel]]:
    """A target and a draft for each engine that can be had here: the same weights, but for their precision."""
    for engine in engines:
        models = [_with_engine(model.to(device), engine) for model in tiny_llamas(VOCABULARY, heads=1)]
        if all(model.engine == engine for model in models):
            yield models[0], models[1]


def _with_engine(model: PreTrainedModel, engine: str) -> LanguageModel:
    model = model.bfloat16() if engine == "kernels" else _all_in_float64(model)
    language_model = LanguageModel(model, "tiny Llama", compiled=engine != "eager")
    if engine == "inductor":
        language_model.compile()
    return language_model


def _all_in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """With other norms: Llama's are computed in float32, whatever the model is in."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, LlamaRMSNorm):
            same = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, device=norm.weight.device)
            same.weight = norm.weight
            model.set_submodule(name, same)
    return model.double()
