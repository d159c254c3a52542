"""Every architecture of transformers that writes text, tiny and random, and the page that says how each is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from specdec_lib.models.engines.layers import NORM_OFFSETS
from specdec_lib.models.loading.architectures import REFUSED, auto_class, field
from specdec_lib.models.loading.tested_architectures import READ, read_as

TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
VOCABULARY: int = TABLE["sizes"]["vocab_size"]
SHAPES = {kind: {"model_type": kind} | TABLE["changes"].get(kind, {}) for kinds in READ.values() for kind in kinds}
SHAPES |= TABLE["variants"]
PAGE = Path("docs/models.md")
GENERATED = "<!-- from here on made by tests/support/architectures.py -->\n"


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A config of this type whose model has some ten thousand weights."""
    return _shrunk(CONFIG_MAPPING[model_type](), TABLE["sizes"], changes)


def _shrunk(default: Any, sizes: dict[str, Any], changes: dict[str, Any]) -> Any:
    sizes = {name: size for name, size in sizes.items() if _can_be_set(default, name)}
    if "sliding_window" in sizes and not isinstance(default.sliding_window, int):
        del sizes["sliding_window"]
    if _can_be_set(default, "layer_types"):
        kinds = list(dict.fromkeys(default.layer_types))
        sizes["layer_types"] = (kinds * 4)[:4]
    for name in getattr(default, "sub_configs", {}):
        if (part := field(default, name)) is not None:
            is_text = part is default.get_text_config(decoder=True)
            of_part = TABLE["sizes"] | ({} if is_text else TABLE["vision"])
            sizes[name] = _shrunk(part, of_part, changes.get(name, {}))
    return type(default)(**sizes | {name: value for name, value in changes.items() if name not in default.sub_configs})


def _can_be_set(config: Any, name: str) -> bool:
    """Whether a config has this field, and not as one that is derived from others."""
    derived = getattr(type(config), config.attribute_map.get(name, name), None)
    return field(config, name) is not None and not (isinstance(derived, property) and derived.fset is None)


def tiny_model(config: Any, seed: int = 0) -> transformers.PreTrainedModel:
    """Random weights of that shape, with the model's own attention."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return auto_class(config).from_config(config, attn_implementation="eager").eval()


def page(written: str) -> str:
    """docs/models.md with the lists of today, after the text that is `written` there by hand."""
    parts = [written.partition(GENERATED)[0] + GENERATED]
    for read, kinds in READ.items():
        parts.append(f"## Read as `{read}`: {len(kinds)} architectures\n\n{', '.join(f'`{kind}`' for kind in kinds)}\n")
    refused = [f"| `{kind}` | {reason} |" for kind, reason in sorted(REFUSED.items())]
    parts.append("\n".join(["| refused by its type | it |", "| --- | --- |", *refused, ""]))
    shapes = {name: (shape["model_type"], read_as(tiny_config(**shape))) for name, shape in TABLE["variants"].items()}
    lines = [f"| {name} | `{kind}` | {read} |" for name, (kind, read) in shapes.items()]
    served = ", ".join(f"`{kind}`" for kind in sorted(NORM_OFFSETS))
    kernels = f"\n## On a CPU by the C++ kernels, in bfloat16 and int8: {len(NORM_OFFSETS)} architectures\n\n{served}\n"
    return "\n".join([*parts, "| shape | architecture | read as |", "| --- | --- | --- |", *lines, kernels])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
