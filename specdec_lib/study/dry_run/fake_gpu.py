"""A GPU that is not here, and a study's pair on it: models of real shapes without contents, whole or shortened."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import torch

from specdec_lib.config import StudyParams
from specdec_lib.decoding.progress import Progress
from specdec_lib.hardware.catalog import WEIGHT_FORMS, WeightForm, load_gpus, load_models, price
from specdec_lib.kernels.gpu import ops as gpu_kernels
from specdec_lib.machine.fake_device import FakeDevice, fake_device
from specdec_lib.models.engines.engine import EagerEngine
from specdec_lib.models.loading.architectures import field, text_config
from specdec_lib.models.loading.checkpoints import RANDOM, random_model, random_shapes
from specdec_lib.models.loading.tested_architectures import read_as
from specdec_lib.models.pair import Pair, load_study_pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import attention_geometry
from specdec_lib.models.shipped_head import ShippedHead
from specdec_lib.models.tensor_parallel import check_heads

REPORTS = 3  # that the host reads in a call: of the prefill, of the step before a capture, of a replay
ROLES = ("target", "draft")
LAYERS = 4  # of a shortened model
PER_LAYER = ("layer_types", "mlp_layer_types")  # the keys of a config that have an entry for each layer


class Depth(NamedTuple):
    """Of a whole model whose first layers are rehearsed."""

    layers: int
    missing_bytes: int  # of the other layers' weights; negative where those that are here are quantised in truth


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


def check_captured(params: StudyParams) -> None:
    """Refuse a pair whose steps are not captured: the host reads their lengths, of which this device has none.

    Raises:
        ValueError: names the model, and a kind of pair that can be rehearsed.
    """
    for name, config in random_shapes(params):
        if (kind := read_as(config)) not in (None, EagerEngine.name):
            raise ValueError(
                f"{name} is read {kind}: its steps are not captured, so there is nothing to rehearse; choose a pair "
                "that is read eager, see docs/models.md, or measure it with a short run"
            )


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
    has_triton = mock.patch.object(gpu_kernels, "why_not_on_gpu", return_value=None)
    with mock.patch.object(Progress, "read", scripted), here as device, has_triton:
        yield device


def fake_pair(params: StudyParams) -> Pair:
    """The study's pair at its real size, on its way through `load_study_pair`; of a spread target what one GPU holds.

    ValueError if its pair has no known configuration.
    """
    shapes = shapes_of(params)
    if params.tensor_parallel == 1 and not any(map(_form, shapes)):
        return load_study_pair(params.model_copy(update={"weights": "random", "accepted_per_step": [1]}))
    return _pair_of(params, shapes)


def short_pair(params: StudyParams) -> tuple[Pair, Depths]:
    """The first layers of the same: all layers are alike, and operators without contents take time too."""
    shapes = shapes_of(params)
    texts = [text_config(config) for _, config in shapes]
    depths = [text.num_hidden_layers for text in texts]
    for text in texts:
        shorten(text, LAYERS)
    pair = _pair_of(params, shapes)
    return pair, depths_of(pair, shapes, depths)


def shorten(config: Any, layers: int) -> None:
    """Leave at most so many layers of a text model, the first ones."""
    config.num_hidden_layers = min(config.num_hidden_layers, layers)
    for name in PER_LAYER:
        if isinstance(kinds := field(config, name), list):
            setattr(config, name, kinds[: config.num_hidden_layers])


def depths_of(pair: Pair, shapes: list[tuple[str, Any]], layers: Sequence[int] | None = None) -> Depths:
    """What a pair of these shapes lacks of the real one with so many layers: layers, and quantised weights.

    Without `layers`, those that it has; then bytes are missing only where weights are quantised, and are negative.
    """
    found = {}
    for role, model, shape, number in zip(ROLES, models_of(pair), shapes, layers or (None, None), strict=True):
        here = model.body.layers
        wanted, sizes = number or len(here), [_bytes_of_layer(layer, _form(shape)) for layer in here]
        held = bytes_of(each for layer in here for each in layer.parameters())
        found[role] = Depth(wanted, round(sum(sizes) / len(sizes) * wanted - held))
    return found


def _form(shape: tuple[str, Any]) -> WeightForm | None:
    """How the checkpoint of a shape holds its matrices; None if not quantised."""
    known = load_models().get(shape[0])
    return WEIGHT_FORMS[known.quantised] if known and known.quantised else None


def _bytes_of_layer(layer: torch.nn.Module, form: WeightForm | None) -> float:
    sizes = [
        weight.numel() * form.bytes_per_weight
        if form and weight.dim() >= 2 and (".experts." in name or not form.only_experts)
        else weight.nbytes
        for name, weight in layer.named_parameters()
    ]
    return float(sum(sizes))


def shapes_of(params: StudyParams) -> list[tuple[str, Any]]:
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
    whole = copy.deepcopy(config)
    if devices == 1:
        return whole
    part = text_config(whole)
    part.head_dim, part.num_attention_heads, part.num_key_value_heads = head_dim, heads // devices, shared // devices
    part.intermediate_size = part.intermediate_size // devices
    return whole


def with_head(pair: Pair) -> Pair:
    """The same target, with a draft head of random weights in the place of its draft."""
    last = pair.target.num_layers - 2
    tapped = tuple(sorted({0, last // 2, last} if last > 0 else ()))  # as many as EAGLE-3 reads, and the last state
    target = LanguageModel(pair.target.model, pair.target.name, tapped)
    target.active_engine = type(pair.target.active_engine)(*target._parts)
    head = ShippedHead.random(target)
    return replace(pair, target=target, draft=head, draft_id=head.name)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of these tensors, each storage once."""
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())
