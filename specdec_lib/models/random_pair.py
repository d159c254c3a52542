"""Target and draft of a given shape with random weights: real latency, memory and energy with no download or licence.

The text of such a pair is noise. It says nothing about acceptance or exactness.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from specdec_lib.config import CUSTOM_PAIR, StudyParams
from specdec_lib.hardware.catalog import load_models
from specdec_lib.models import host_memory
from specdec_lib.models.attention import our_attention
from specdec_lib.models.presets import PRESETS
from specdec_lib.models.runner import LanguageModel

SUFFIX = " (random weights)"
STANDARD_DEVIATION = 0.02


def shape_names(params: StudyParams) -> tuple[str, str]:
    """Target and draft whose shapes a study uses: names in `hardware/models.yaml`, or folders with a `config.json`.

    Raises:
        ValueError: the study names no such pair; the known ones are named.
    """
    if params.target is not None and params.draft is not None:
        return params.target, params.draft
    if params.pair not in PRESETS:
        known = ", ".join([*PRESETS, CUSTOM_PAIR])
        raise ValueError(f"weights: random knows no shapes for pair {params.pair!r}: choose one of {known}")
    return PRESETS[params.pair]


def config_of(name: str) -> Any:
    """The Hugging Face config of a model in `hardware/models.yaml`, or of a folder that holds a `config.json`.

    Raises:
        ValueError: neither exists; the known models are named.
    """
    models = load_models()
    if name in models:
        return transformers.AutoConfig.for_model(**models[name].config)
    if (Path(name) / "config.json").is_file():
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    raise ValueError(
        f"weights: random needs the shape of {name!r}: give a folder with a config.json, or one of {', '.join(models)}"
    )


def random_models(params: StudyParams, dtype: str) -> list[LanguageModel]:
    """Target and draft of a study with `weights: random`.

    Raises:
        ValueError: unknown shapes, or vocabularies of two sizes.
    """
    names = shape_names(params)
    models = [_random_model(name, params.device, dtype, seed) for seed, name in enumerate(names)]
    if models[0].vocab_size != models[1].vocab_size:
        sizes = f"{models[0].vocab_size} and {models[1].vocab_size}"
        raise ValueError(f"{names[0]} and {names[1]} have vocabularies of {sizes} tokens: choose shapes of one family")
    return models


def _random_model(name: str, device: str, dtype: str, seed: int) -> LanguageModel:
    """Matrices are normal noise; norms stay as they are initialised."""
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config_of(name), dtype=getattr(torch, dtype), attn_implementation=our_attention()
        )
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, STANDARD_DEVIATION, generator=generator)
    host_memory.move(model)
    return LanguageModel(model, Path(name).name + SUFFIX)
