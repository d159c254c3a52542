"""What a `config.json` says and a machine or its weights cannot keep: found before any weights are read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.quantizers import AutoHfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING


def check_quantisation(config: Any, where: str, device: str) -> None:
    """Refuse weights in a quantised form that cannot be computed with here, as its package is missing; a ValueError."""
    found = getattr(config, "quantization_config", None) or getattr(_text(config), "quantization_config", None)
    if not found:
        return
    said = dict(found) if isinstance(found, Mapping) else found.to_dict()
    form = said.get("quant_method") or "a method that its quantization_config does not name"
    form = str(getattr(form, "value", form))
    try:
        if form not in AUTO_QUANTIZER_MAPPING and form != "bitsandbytes":
            raise ValueError("transformers does not know it")
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(found), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{where} holds weights quantised by {form} ({reason}): install what that needs, or choose weights that "
            "are not quantised"
        ) from error


def check_rows(config: Any, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Refuse weights none of whose matrices has a row for each token of the vocabulary, by a ValueError.

    Args:
        shapes: of each tensor, from the headers of the files.
    """
    tokens = _text(config).vocab_size
    matrices = {name: shape[0] for name, shape in shapes.items() if len(shape) == 2}
    if not matrices or tokens in matrices.values():
        return
    named = [name for name in matrices if "embed" in name or "wte" in name] or list(matrices)
    table = max(named, key=matrices.__getitem__)
    raise ValueError(
        f"{where}: vocab_size is {tokens} in its config.json, but {table} has {matrices[table]} rows: correct "
        "config.json, or save the model again with save_pretrained"
    )


def how_to_extend(config: Any) -> str:
    """The end of a sentence on how to use the whole context of a model whose config stays below it; else nothing.

    YaRN (arXiv 2309.00071) multiplies a context by its factor; `max_position_embeddings` says how much of it is used.
    """
    if not hasattr(config, "get_text_config"):
        return ""  # a toy or a draft head
    text = _text(config)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if (rope.get("rope_type") or rope.get("type")) != "yarn":
        return ""
    used = text.max_position_embeddings
    original = rope.get("original_max_position_embeddings") or used
    if (whole := int(original * rope.get("factor", 1))) <= used:
        return ""
    return (
        f", or raise max_position_embeddings in its config.json from {used} to {whole}, next to "
        f"original_max_position_embeddings: {original}, as its yarn factor allows"
    )


def _text(config: Any) -> Any:
    """The configuration of the language model; that of a multimodal checkpoint is nested."""
    return config.get_text_config(decoder=True)
