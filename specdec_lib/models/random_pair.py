"""Target and draft of a given shape with random weights: real latency, memory and energy with no download or licence.

What such a pair says is noise, so that nothing about acceptance or exactness can be learnt from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from specdec_lib.hardware.catalog import load_models
from specdec_lib.models import host_memory
from specdec_lib.models.attention import our_attention
from specdec_lib.models.runner import LanguageModel

PAIR_MODELS = {  # preset: target and draft in hardware/models.yaml
    "qwen3-8b": ("qwen3-8b", "qwen3-0.6b"),
    "qwen3-32b": ("qwen3-32b", "qwen3-0.6b"),
    "qwen3-32b-1.7b": ("qwen3-32b", "qwen3-1.7b"),
    "llama-3.1-8b": ("llama-3.1-8b", "llama-3.2-1b"),
    "smollm2-1.7b": ("smollm2-1.7b", "smollm2-135m"),
}
SUFFIX = " (random weights)"
STANDARD_DEVIATION = 0.02


def config_of(name: str) -> Any:
    """The Hugging Face config of a model in `hardware/models.yaml`, or of a folder that holds a `config.json`.

    Raises:
        ValueError: neither is there; the known models are named.
    """
    models = load_models()
    if name in models:
        return transformers.AutoConfig.for_model(**models[name].config)
    if (Path(name) / "config.json").is_file():
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    raise ValueError(
        f"weights: random needs the shape of {name!r}: give a folder with a config.json, or one of {', '.join(models)}"
    )


def random_model(name: str, device: str, dtype: str, seed: int = 0) -> LanguageModel:
    """A model of that shape whose matrices are normal noise; norms stay as they are initialised."""
    config = config_of(name)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=our_attention()
        )
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, STANDARD_DEVIATION, generator=generator)
    host_memory.move(model)
    return LanguageModel(model, Path(name).name + SUFFIX)
