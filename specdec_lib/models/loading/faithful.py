"""Whether an engine computes what a model's own code does, by the model's own attention; and which engine to take.

The trial is a ragged batch, read in pieces, with wrong tokens after the right ones that are rolled back. Windows are
narrowed for it, so that a short text reaches past their edges. Attention is compared in float32, call by call, whatever
the element type of the model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from specdec_lib.models.attention import (
    NAME,
    NotServedError,
    as_transformers_does,
    attending,
    compared_with_own,
    set_attention,
)
from specdec_lib.models.engines.engine import EagerEngine, Engine
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.engines.row_by_row import RereadingEngine, RowByRowEngine, TokenByTokenEngine
from specdec_lib.models.loading.architectures import NARROW, WINDOWS, field, narrow_windows, text_config
from specdec_lib.models.loading.tested_architectures import read_as

if TYPE_CHECKING:
    from specdec_lib.models.runner import LanguageModel

logger = logging.getLogger(__name__)

TOLERANCE = 0.1  # relative difference of logits between engines: bfloat16 results depend on where they are rounded
TOLERANCE_FLOAT32 = 1e-3
LENGTHS = (28, 16, 21)  # tokens of the rows of a trial
BEFORE = 16  # tokens of the first row, after which its own `generate` goes on
PIECES = ((16, 12), (1, 1), (9, 6), (9, 9))  # tokens of a pass, and how many of the first row's stay
FOREIGN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def faithful_engine(model: LanguageModel) -> type[Engine]:
    """The first engine, of those from fast to slow, that computes what the model's own code does.

    ValueError, with the reason, if there is none.
    """
    texts = [some_tokens(model)[0, : min(length, model.context_length)] for length in LENGTHS]
    kinds = _kinds(model)
    reason: Exception | None = None
    with narrow_windows(model.model.config):
        try:
            own = _own_logits(model, texts)
        except NotServedError as error:
            raise _refused(model.name, str(error)) from error
        except FOREIGN as error:
            raise _refused(model.name, f"its own code fails on text alone, {_in_a_line(error)}") from error
        for kind in kinds:
            if kind is not EagerEngine:
                set_attention(model.model, "eager")
            try:
                with compared_with_own():
                    _check(model, kind(model.body, model.head, (), model.context_length), texts, own)
                return kind
            except (NotServedError, *FOREIGN) as error:
                reason = error
                logger.info("%s is not read %s: %s", model.name, kind.name, _in_a_line(error))
    raise _refused(model.name, _in_a_line(reason)) from reason


def _kinds(model: LanguageModel) -> list[type[Engine]]:
    """The engines to try: from the one that read this architecture in the tests, or all of them.

    ValueError for one that has not been tested, in an element type that hides small differences.
    """
    config = model.model.config
    kinds: list[type[Engine]] = [RowByRowEngine, TokenByTokenEngine, RereadingEngine]
    if text_config(config)._attn_implementation == NAME:
        kinds.insert(0, EagerEngine)
    known = read_as(config)
    if known is None and model.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{model.name} is of type {config.model_type}, which has not been tested, and {model.dtype} hides small "
            "differences: load it with dtype float32, in which it is tried out, or choose a model of docs/models.md"
        )
    names = [kind.name for kind in kinds]
    return kinds[names.index(known) :] if known in names else kinds


def _refused(name: str, reason: str) -> ValueError:
    return ValueError(f"{name} cannot be decoded exactly ({reason}): choose another model, see docs/models.md")


@contextmanager
def refusing_foreign_code(name: str) -> Iterator[None]:
    """Turn whatever a model's own code raises while it is tried out into a ValueError of one line."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, NotServedError, RuntimeError, TypeError) as error:
        raise _refused(name, _in_a_line(error)) from error


def _in_a_line(error: Exception | None) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    text = " ".join(str(error).split())[:160]
    return text if isinstance(error, NotServedError) else f"{type(error).__name__}: {text}"


def _own_logits(model: LanguageModel, texts: list[torch.Tensor]) -> list[torch.Tensor]:  # [n, V] of each text
    """By the model's own code and attention, each text alone and without a cache.

    NotServedError if its `generate` computes something else, or if a token's logits depend on those that follow.
    """
    with attending(model.model, "eager"):
        own = [_forward(model.model, text) for text in texts]
        start = texts[0][:BEFORE]
        generated = _generated(model.model, start)  # [2, V]
        longer = _forward(model.model, torch.cat([start, generated[:1].argmax(dim=-1)]))
    if not all(logits.isfinite().all() for logits in own):
        raise NotServedError("its logits are no numbers (NaN or infinite): its weights are damaged")
    if not _close(longer[: len(start)], own[0][: len(start)], model.dtype):
        raise NotServedError("it reads tokens that follow, as an encoder does")
    if not _close(generated, longer[-2:], model.dtype):
        raise NotServedError("its generate in transformers computes something else than its forward")
    return own


def _generated(model: Any, start: torch.Tensor) -> torch.Tensor:  # [2, V]
    """The logits of the first two tokens that `generate` makes after `start`, with a cache of its choice."""
    said = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    settings = GenerationConfig(**said, eos_token_id=None, pad_token_id=0)
    with as_transformers_does(model):
        mask = torch.ones_like(start)[None]
        return torch.cat(model.generate(start[None], attention_mask=mask, generation_config=settings).logits).float()


def _forward(model: Any, text: torch.Tensor) -> torch.Tensor:  # [n] -> [n, V]
    """Logits of `text` at positions that are handed over as `generate` does."""
    given: dict[str, Any] = {"use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = torch.arange(len(text), device=text.device)[None]
    return model(input_ids=text[None], **given).logits[0].float()


def _check(model: LanguageModel, engine: Engine, texts: list[torch.Tensor], own: list[torch.Tensor]) -> None:
    """NotServedError if `engine` gives other logits for these texts."""
    cache, lengths = engine.new_cache(len(texts), max(LENGTHS) + PIECES[0][0]), [0] * len(texts)
    ours: list[list[torch.Tensor]] = [[] for _ in texts]
    wrong = some_tokens(model)[0].flip(0)
    for width, kept in PIECES:
        right = [text[done:][: max(kept - row, 1)] for row, (text, done) in enumerate(zip(texts, lengths, strict=True))]
        tokens = torch.stack([torch.cat([part, wrong[: width - len(part)]]) for part in right])
        logits = engine.logits(engine(tokens, cache).hidden)
        for row, part in enumerate(right):
            ours[row].append(logits[row, : len(part)].float())
            lengths[row] += len(part)
        cache.commit(width, at_most=width)
        cache.set_lengths(torch.tensor(lengths, device=model.device), max(lengths))
    for found, expected in zip(ours, own, strict=True):
        if not _close(torch.cat(found), expected, model.dtype):
            difference = relative_difference(torch.cat(found), expected)
            raise NotServedError(f"read {engine.name}, its logits are off by {difference:.1%}")


def _close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    return relative_difference(found, expected) <= (TOLERANCE_FLOAT32 if dtype == torch.float32 else TOLERANCE)


def check_kernels(model: LanguageModel) -> None:
    """Whether the kernels compute what PyTorch does with the same model, past the edges of its windows too.

    A window is narrowed on both sides: one of the config would be longer than the trial's text.
    """
    assert isinstance(model.active_engine, KernelEngine)
    windows = {layer.window for layer in model.active_engine.layers.layers} - {0}
    stated = {field(text_config(model.model.config), name) for name in WINDOWS}
    assert windows <= stated, f"engine {model.engine} has windows of {sorted(windows)}, and the config of {stated}"
    parts = model.body, model.head, (), model.context_length
    tokens = some_tokens(model)
    for narrow in (False, True) if windows else (False,):
        with narrow_windows(model.model.config) if narrow else nullcontext():
            engines: tuple[Engine, ...] = KernelEngine(*parts, narrow=NARROW if narrow else None), EagerEngine(*parts)
            ours, theirs = (engine.logits(engine(tokens, model.new_cache(*tokens.shape)).hidden) for engine in engines)
        difference = relative_difference(ours, theirs)
        where = " past the edge of its window" if narrow else ""
        assert difference < TOLERANCE, f"engine {model.engine} computes another model{where}: off by {difference:.1%}"


def some_tokens(model: LanguageModel) -> torch.Tensor:  # [1, 64]
    """Tokens of the vocabulary, the same at each call."""
    return torch.randint(model.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0)).to(model.device)


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference over that of `theirs`."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())
