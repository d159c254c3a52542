"""A GPU that is not here, and a study's pair on it: models of real shapes without contents, whole or shortened."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import torch

from specdec_lib.config import StudyParams
from specdec_lib.decoding.progress import Progress
from specdec_lib.hardware.catalog import load_gpus, price
from specdec_lib.machine.fake_device import FakeDevice, fake_device
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.loading.checkpoints import RANDOM, random_model, random_shapes
from specdec_lib.models.pair import Pair, load_study_pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import attention_geometry
from specdec_lib.models.tensor_parallel import check_heads

REPORTS = 3  # that the host reads in a call: of the prefill, of the step before a capture, of a replay
ROLES = ("target", "draft")
LAYERS = 4  # of a shortened model


class Depth(NamedTuple):
    """Of a whole model whose first layers are rehearsed."""

    layers: int
    missing_bytes: int  # of the other layers' weights


Depths = Mapping[str, Depth]  # of target and draft


def product_of(params: StudyParams) -> str:
    """The key in `hardware/gpus.yaml` of the GPU that a study is for, by its price; ValueError if it is for none."""
    product = price(params.price).gpu
    if params.device != "cuda" or product not in load_gpus():
        raise ValueError(
            f"GPU={params.gpu} is no study of a GPU (device {params.device}, price of a {product}): choose one such as "
            "GPU=h100, whose params have device: cuda and the price of a product of hardware/gpus.yaml"
        )
    return product


@contextmanager
def fake_gpu(params: StudyParams) -> Iterator[FakeDevice]:
    """The study's GPU, and a host that hears of three steps in each call, whatever the device would say."""
    gpu = load_gpus()[product_of(params)]
    name = gpu.nvml_names[0] if gpu.nvml_names else gpu.product
    read = Progress.read

    def scripted(progress: Progress, report: list[int]) -> bool:
        last, batch = len(progress.times) == REPORTS - 1, (len(report) - 3) // 2
        remaining = 0 if last else max(progress.max_remaining - 1, 1)
        longest = min(progress.longest + 1, progress.longest_possible)
        return read(progress, [remaining, longest, 0, *[1] * batch, *[0] * batch])

    here = fake_device(name, gpu.memory_gb * 1e9, params.num_devices)
    with mock.patch.object(Progress, "read", scripted), here as device:
        yield device


def fake_pair(params: StudyParams) -> Pair:
    """The study's pair at its real size, on its way through `load_study_pair`; of a spread target what one GPU holds.

    ValueError if its pair has no known configuration.
    """
    if params.tensor_parallel == 1:
        return load_study_pair(params.model_copy(update={"weights": "random", "accepted_per_step": [1]}))
    return _pair_of(params, _shapes(params))


def short_pair(params: StudyParams) -> tuple[Pair, Depths]:
    """The first layers of the same: all layers are alike, and operators without contents take time too."""
    shapes, depths = _shapes(params), [config.num_hidden_layers for _, config in _shapes(params)]
    for _, config in shapes:
        config.num_hidden_layers = min(config.num_hidden_layers, LAYERS)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:LAYERS]
    pair = _pair_of(params, shapes)
    of_layer = [bytes_of(model.body.layers[-1].parameters()) for model in models_of(pair)]
    missing = [size * max(layers - LAYERS, 0) for size, layers in zip(of_layer, depths, strict=True)]
    return pair, dict(zip(ROLES, map(Depth, depths, missing), strict=True))


def _shapes(params: StudyParams) -> list[tuple[str, Any]]:
    """Names and configs of target and draft, of a spread target that of a share."""
    (name, config), draft = copy.deepcopy(random_shapes(params))
    return [(name, share_of(config, params.tensor_parallel, name)), draft]


def _pair_of(params: StudyParams, shapes: list[tuple[str, Any]]) -> Pair:
    target, draft = (random_model(*shape, params.device, params.dtype, seed) for seed, shape in enumerate(shapes))
    for model in (target, draft):
        if params.tensor_parallel == 1:
            model.compile()
    return Pair(params.pair + RANDOM, target, draft, None, target.name, draft.name, {})


def models_of(pair: Pair) -> list[LanguageModel]:
    """Target and draft, of which neither is a head."""
    assert isinstance(pair.draft, LanguageModel)
    return [pair.target, pair.draft]


def share_of(config: Any, devices: int, name: str) -> Any:
    """The config of what each of several devices computes of a model; its output layer is whole, as a bound."""
    check_heads(config, devices, name)
    heads, shared, head_dim = attention_geometry(config)
    part = copy.deepcopy(config)
    part.head_dim, part.num_attention_heads, part.num_key_value_heads = head_dim, heads // devices, shared // devices
    part.intermediate_size = config.intermediate_size // devices
    return part


def with_head(pair: Pair) -> Pair:
    """The same target, with a draft head of random weights in the place of its draft."""
    last = pair.target.num_layers - 2
    tapped = tuple(sorted({0, last // 2, last} if last > 0 else ()))  # as many as EAGLE-3 reads, and the last state
    target = LanguageModel(pair.target.model, pair.target.name, tapped)
    target.active_engine = type(pair.target.active_engine)(*target._parts)
    head = DraftHead.random(target)
    return replace(pair, target=target, draft=head, draft_id=head.name)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of these tensors, each storage once."""
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())
