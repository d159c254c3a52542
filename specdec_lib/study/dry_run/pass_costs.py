"""What passes of all known models and the rest of a step take, counted on a fake device: `hardware/costs.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.ops import choose_ops
from specdec_lib.hardware.catalog import LAYER, load_models, load_published
from specdec_lib.hardware.costs import (
    ANY,
    CHOOSE,
    COSTS,
    DECODE,
    DRAFT_CHOICE,
    OUTPUT,
    POINT,
    SEVERAL,
    VERIFICATION,
    Counts,
    layer_of,
)
from specdec_lib.machine.fake_device import fake_device
from specdec_lib.machine.operator_counts import OperatorCounter
from specdec_lib.machine.step_costs import SAMPLING, call_of_done_rows, step_pieces
from specdec_lib.machine.stopwatch import Stopwatch
from specdec_lib.models.engines.engine import EagerEngine
from specdec_lib.models.loading.architectures import field, text_config
from specdec_lib.models.loading.checkpoints import config_of, random_model
from specdec_lib.models.loading.tested_architectures import read_as
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.study.dry_run.fake_gpu import PER_LAYER, shorten

# The corners of each count, of odd sizes: operators over equally many elements by chance would seem to be joined. A row
# of one token is a piece of its own, as its tensors need fewer copies.
BATCHES, TOKENS, POSITIONS = (3, 61), (5, 509), (17 * 64, 131 * 64)
CHOOSING, VERIFIED, VOCABULARIES = (
    (7, 61),
    (4, 11),
    (5_003, 130_003),
)  # of pieces of any model
SAMPLED = SamplingConfig(temperature=1.0)
MEMORY = 1e13  # bytes of the fake device: whatever a model takes

Point = tuple[int, int, int]  # batch size, tokens of each row, size
Line = tuple[str, Point, Counts]  # the piece


def write_costs(path: Path = COSTS) -> Path:
    """Count all models of `models.yaml`, the one-layer drafts of published results, and what any model needs."""
    with fake_device("any", MEMORY):
        counted = [*_lines_of_models(), *((ANY, *line) for line in _of_any_model())]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# Counted on a fake device with torch {torch.__version__}; made by gpu-rehearsal --write-plan.\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "piece", *POINT, *Counts._fields])
        writer.writerows((model, piece, *point, *counts) for model, piece, point, counts in counted)
    return path


def _lines_of_models() -> Iterator[tuple[str, str, Point, Counts]]:
    drafts = {point.target for point in load_published().values() if point.draft == LAYER}
    for name in load_models():
        if read_as(config_of(name)) not in (None, EagerEngine.name):
            continue  # row by row, as the host reads their lengths
        layers = text_config(config_of(name)).num_hidden_layers
        yield from ((name, *line) for line in count_model(name, layers))
        if name in drafts:
            yield from ((layer_of(name), *line) for line in count_model(name, 1))


def count_model(name: str, num_layers: int) -> list[Line]:
    """The pieces of a model at all corners. Two short models are counted, as layers repeat."""
    short, period = _repetition(text_config(config_of(name)))
    models = [shortened(name, layers) for layers in (short, short + period)]
    points = [(DECODE, point) for point in product(BATCHES, (1,), POSITIONS)]
    points += [(SEVERAL, point) for point in product(BATCHES, TOKENS, POSITIONS)]
    lines = []
    for piece, point in points:
        few, more = (count_layers(model, *point) for model in models)
        lines.append((piece, point, _extended(few, more, (num_layers - short) / period)))
    return lines + [(OUTPUT, (batch, 1, 0), count_output(models[0], batch)) for batch in BATCHES]


def _repetition(config: Any) -> tuple[int, int]:
    """How many layers come before the kinds of layers repeat for the first time, and after how many they repeat."""
    lists = [kinds for name in PER_LAYER if isinstance(kinds := field(config, name), list)]
    kinds = [*zip(*lists, strict=True)] or [()] * config.num_hidden_layers
    for size in range(1, len(kinds)):
        for period in range(1, size + 1):
            if kinds[size:] == kinds[size - period : -period]:
                return size, period
    raise ValueError(f"no layers of {config.model_type} repeat: its passes cannot be counted from the first of them")


def shortened(name: str, num_layers: int) -> LanguageModel:
    """The first layers of a known model, ready to run on the device."""
    config = config_of(name)
    shorten(text_config(config), num_layers)
    return _compiled(random_model(name, config, "cuda", "bfloat16", seed=0))


def _compiled(model: LanguageModel) -> LanguageModel:
    model.compile()
    return model


def _extended(few: Counts, more: Counts, times: float) -> Counts:
    """So many times more of what `more` has beyond `few`; of experts, what each layer has."""
    counts = (round(a + times * (b - a)) for a, b in zip(few, more, strict=True))
    return Counts(*counts)._replace(experts=more.experts, expert_rows=more.expert_rows)


def count_layers(model: LanguageModel, batch_size: int, tokens: int, positions: int) -> Counts:
    """A pass without the output layer, whose last token attends to `positions`."""
    device = model.device
    cache = model.new_cache(batch_size, positions)
    before = positions - tokens
    cache.set_lengths(torch.full((batch_size,), before, device=device), before)
    ids = torch.zeros(batch_size, tokens, dtype=torch.int64, device=device)
    with OperatorCounter(device.type, model.model) as counter:
        passed = model.forward(ids, cache)
    counts = counter.counts([passed.hidden, passed.features])
    if model.engine != "inductor":  # nothing compiles its layers
        return counts._replace(fused_bytes=counts.other_bytes, fused_kernels=counts.kernels)
    return counts


def count_output(model: LanguageModel, rows: int) -> Counts:
    """The output layer for so many hidden states."""
    hidden = torch.zeros(rows, 1, model.hidden_size, dtype=model.dtype, device=model.device)
    with OperatorCounter(model.device.type, model.model) as counter:
        logits = model.logits(hidden)
    return counter.counts(logits)


def _of_any_model() -> Iterator[Line]:
    for vocabulary in VOCABULARIES:
        target, draft = tiny_model(vocabulary), tiny_model(vocabulary)
        pair = Pair("tiny", target, draft, None, target.name, draft.name, {})
        for batch in CHOOSING:
            yield CHOOSE, (batch, 1, vocabulary), count_rest_of_step(pair, batch, 1)
            yield DRAFT_CHOICE, (batch, 1, vocabulary), count_draft_choice(draft, batch)
            for tokens in VERIFIED:
                yield VERIFICATION, (batch, tokens, vocabulary), count_rest_of_step(pair, batch, tokens)


def tiny_model(vocab_size: int) -> LanguageModel:
    """Of one narrow layer: what is counted of it does not depend on its layers."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    config = transformers.AutoConfig.for_model("llama", vocab_size=vocab_size, **sizes)
    return _compiled(random_model("tiny", config, "cuda", "bfloat16", seed=0))


@torch.inference_mode()
def count_rest_of_step(pair: Pair, batch_size: int, tokens: int) -> Counts:
    """A step at temperature 1 without target and draft, by the rule "token", when the target's pass took `tokens`."""
    call = call_of_done_rows(pair, Stopwatch(pair.target.device), batch_size, 8, tokens, SAMPLED.temperature)
    piece = step_pieces(pair, call, ["draft"])[SAMPLING]
    with OperatorCounter(pair.target.device.type) as counter:
        piece()
    return counter.counts([])


@torch.inference_mode()
def count_draft_choice(draft: LanguageModel, batch_size: int) -> Counts:
    """Logits of the draft to a distribution that is kept, and a token."""
    ops = choose_ops(draft, SAMPLED)
    logits = torch.zeros(batch_size, draft.vocab_size, dtype=draft.dtype, device=draft.device)
    uniforms = torch.zeros(batch_size, dtype=torch.float64, device=draft.device)
    with OperatorCounter(draft.device.type) as counter:
        probs = ops.probabilities(logits)
        kept = torch.cat([probs[:, None]], dim=1), ops.choose(probs, uniforms)
    return counter.counts(kept)
