"""What a model's config says before any weights are read: its text model, its context, and why it cannot be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WINDOWS = ("sliding_window", "attention_chunk_size")  # the keys of a config that say how far a token sees
NARROW = 8  # positions: the windows while a model is checked
REFUSED = {  # by model type
    "cpmant": "reads tokens that follow",
    "idefics": "reads no text without an image",
    "kosmos-2.5": "generates something else in transformers than its forward computes",
    "moshi": "computes something else in transformers with a cache than without",
    "pi0": "writes actions, no text",
    "reformer": "hashes its tokens at random",
    "xlm": "reads tokens that follow",
}
UNBOUNDED = 2**20  # tokens: the context of models that say none, such as recurrent ones


def text_config(config: Any) -> Any:
    """The part of a config that describes the text model; that of a plain language model is the config itself."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def field(config: Any, name: str) -> Any:
    """A field of a config; None if it has none, or one for each layer."""
    try:
        return getattr(config, name, None)
    except (NotImplementedError, RuntimeError):  # transformers raises these for the latter
        return None


def text_model(model: Any) -> Any:
    """The part of a model of transformers that makes hidden states of tokens; of several towers, the text's."""
    body = model.base_model if text_config(model.config) is model.config else model.get_decoder()
    return body.model if body is model or hasattr(body, "lm_head") else body


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model with all of its tensors, those of other towers among them."""
    import transformers

    is_text = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and text_config(config) is config
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not is_text:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def check_architecture(config: Any, where: str) -> None:
    """Refuse, by a ValueError with the reason, what is no causal language model."""
    import transformers

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{where} is an encoder-decoder model: choose a causal language model")
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not any(type(config) in mapping for mapping in known):
        raise ValueError(f"{where} is of type {kind}, which writes no text by itself: choose a causal language model")
    if reason := REFUSED.get(kind):
        raise ValueError(f"{where} is of type {kind}, which {reason}: choose another architecture, see docs/models.md")


def context_length(config: Any) -> int:
    """The most tokens that a text may have: what the config says, or less where longer texts are read differently."""
    return _context(config)[0]


def why_shorter(config: Any) -> str:
    """Why `context_length` is less than what the config says; empty if it is not."""
    return _context(config)[1]


def _context(config: Any) -> tuple[int, str]:
    """The context, and why it is not what the config says.

    The angles of longrope change for the whole text when it outgrows the original context. Those of dynamic scaling
    would as well, but only past `max_position_embeddings`. Sparse attention picks tokens by scores, of which many are
    zero: which of them are picked changes with the length of what is read at once.
    """
    config = text_config(config)
    limits = [(field(config, "max_position_embeddings") or field(config, "max_seq_len") or UNBOUNDED, "")]
    for rope in _ropes(config):
        if (rope.get("rope_type") or rope.get("type")) == "longrope" and rope.get("original_max_position_embeddings"):
            why = ", as the angles of its longrope change there for the whole text"
            limits.append((rope["original_max_position_embeddings"], why))
    if field(config, "index_topk"):
        limits.append((config.index_topk, ", as its attention leaves tokens out in longer texts"))
    return min(limits)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary embeddings that a config names, for all layers or for each kind of layer."""
    found = field(config, "rope_parameters") or field(config, "rope_scaling") or {}
    return [found, *(each for each in found.values() if isinstance(each, dict))]


def fix_frequencies(model: Any) -> None:
    """Let the rotary embedding of dynamic scaling (NTK) keep its frequencies.

    They change past the context only, where no text goes here. To see that it does not, transformers reads the longest
    position on the host in every pass, which a CUDA graph cannot hold.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if kinds == "dynamic":
            module.rope_type = "default"
        elif isinstance(kinds, dict):
            module.rope_type = {name: "default" if kind == "dynamic" else kind for name, kind in kinds.items()}


@contextmanager
def narrow_windows(config: Any) -> Iterator[None]:
    """Within this block windows have `NARROW` positions, so that a short text reaches past them."""
    config = text_config(config)
    before = {name: field(config, name) for name in WINDOWS}
    active = {name: size for name, size in before.items() if isinstance(size, int) and size > NARROW}
    try:
        for name in active:
            setattr(config, name, NARROW)
        yield
    finally:
        for name, size in active.items():
            setattr(config, name, size)


def has_windows(config: Any) -> bool:
    """Whether some layers see less than the whole text, or see it in another way."""
    config = text_config(config)
    sizes = [size for name in WINDOWS if isinstance(size := field(config, name), int)]
    acting = min(sizes, default=UNBOUNDED) < context_length(config)
    used = bool(sizes) and field(config, "use_sliding_window") is not False
    kinds = set(field(config, "layer_types") or ["sliding_attention" if used else "full_attention"])
    return not kinds <= ({"full_attention"} if acting else {"full_attention", "sliding_attention", "chunked_attention"})
