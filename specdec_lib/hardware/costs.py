"""What a pass of each model takes: operations, bytes and kernels, counted from the operators of a rehearsal.

`costs.csv` has the counts of each piece at the corners of a box of batch size, tokens and size. Each count is linear in
each of the three, so that it is known at every other point too.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import NamedTuple

from specdec_lib.hardware.catalog import FOLDER, LAYER, WEIGHT_FORMS, Model, load_models

COSTS = FOLDER / "costs.csv"
ANY = "any"  # the model of pieces that depend on the vocabulary alone
DECODE, SEVERAL = "decode", "several"  # the layers over one token of each row, and over more
OUTPUT = "output"  # the output layer
CHOOSE, DRAFT_CHOICE, VERIFICATION = "choose", "draft choice", "verification"  # pieces of any model
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5 + 2 * 2 / 32}  # int4: groups of 32
COUNTED = "bfloat16"  # the type of the weights that were counted
POINT = ("batch_size", "tokens", "size")


class Counts(NamedTuple):
    """What a piece of decoding takes, with weights in bfloat16.

    Attributes:
        product_flops: of products with weights, 2 for a multiplication and an addition.
        weight_bytes: that these products read.
        expert_bytes: the part of them that belongs to experts, all of them.
        attention_bytes: of keys, values, queries, masks and results of attention.
        other_bytes: of all else, operator by operator: the inputs and outputs of products, norms, rotations, choices.
        fused_bytes: the same, if all operators in a row are one kernel.
        kernels, fused_kernels: that are started in the two ways.
        experts: of each layer, 0 without any.
        expert_rows: the rows that experts of a layer multiply: tokens times the experts of each.
    """

    product_flops: float
    attention_flops: float
    weight_bytes: float
    expert_bytes: float
    attention_bytes: float
    other_bytes: float
    fused_bytes: float
    kernels: float
    fused_kernels: float
    experts: float = 0
    expert_rows: float = 0


def cache_bytes(model: str, batch_size: int, positions: float) -> float:
    """Of keys and values: what attention reads however many tokens attend."""
    return counted(model, SEVERAL, batch_size, 0, positions).attention_bytes


def layer_of(model: str) -> str:
    """The name of the one-layer draft of a model."""
    return f"{model} {LAYER}"


def stated(model: str, field: str) -> int:
    """A field of the text part of the config of a model in `models.yaml`, or of its one-layer draft."""
    config = _known(model).config
    config = config | config.get("text_config", {}) | ({"num_hidden_layers": 1} if model not in load_models() else {})
    return int(config[field])


def weights_read(model: str, counts: Counts, dtype: str, rows: int) -> float:
    """Bytes of weights that layers read for so many rows, as the checkpoint of a model holds them.

    Of experts those to which some row was sent, if all are as likely: operators without contents know no routes.
    """
    missed = (1 - counts.expert_rows / rows / counts.experts) ** rows if counts.experts else 0.0
    return _held(model, counts, dtype, 1 - missed)


def weights_kept(model: str, dtype: str) -> float:
    """Bytes of a model's weights in memory: what is no matrix of a layer is never quantised."""
    counts = counted(model, DECODE, 1, 1, 64)
    others = _known(model).parameters - counts.weight_bytes / BYTES[COUNTED]
    return _held(model, counts, dtype, 1.0) + others * BYTES[dtype]


def _held(model: str, counts: Counts, dtype: str, share_of_experts: float) -> float:
    form = WEIGHT_FORMS[kind] if (kind := _known(model).quantised) else None
    of_layer = BYTES[dtype] if form is None or form.only_experts else form.bytes_per_weight
    of_expert = form.bytes_per_weight if form else BYTES[dtype]
    experts = counts.expert_bytes * share_of_experts
    return ((counts.weight_bytes - counts.expert_bytes) * of_layer + experts * of_expert) / BYTES[COUNTED]


def _known(model: str) -> Model:
    return load_models()[model.removesuffix(f" {LAYER}")]


Corners = Mapping[tuple[int, ...], Counts]


@lru_cache(maxsize=100_000)
def counted(model: str, piece: str, batch_size: int, tokens: int, size: float) -> Counts:
    """The counts of a piece of a model in `models.yaml`.

    Args:
        tokens: of each row.
        size: positions that attention reads; of pieces of any model, the vocabulary.

    Raises:
        ValueError: nothing was counted for this model.
    """
    table = _load_costs()
    if (model, piece) not in table:
        raise ValueError(
            f"hardware/costs.csv has no {piece} of {model!r}: write it anew with python -m specdec_lib gpu-rehearsal "
            "--gpu h100 --write-plan, or choose another pair if the model is read row by row"
        )
    return _between(table[model, piece], (batch_size, tokens, size))


def _between(corners: Corners, place: tuple[float, ...]) -> Counts:
    """Linear in each coordinate, also outside of the box."""
    if not place:
        return corners[()]
    ends = sorted({point[0] for point in corners})
    low, high = (
        _between({point[1:]: counts for point, counts in corners.items() if point[0] == end}, place[1:])
        for end in (ends[0], ends[-1])
    )
    share = (place[0] - ends[0]) / (ends[-1] - ends[0]) if len(ends) > 1 else 0.0
    return Counts(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))


@cache
def _load_costs() -> dict[tuple[str, str], dict[tuple[int, ...], Counts]]:
    table: dict[tuple[str, str], dict[tuple[int, ...], Counts]] = {}
    with COSTS.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(line for line in file if not line.startswith("#")):
            corners = table.setdefault((line["model"], line["piece"]), {})
            corners[tuple(int(line[name]) for name in POINT)] = Counts(*(int(line[name]) for name in Counts._fields))
    return table
