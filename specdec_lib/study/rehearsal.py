"""A GPU study rehearsed without its GPU: each kind of step of it on a `FakeDevice`, and the memory that it would take.

Models have the study's real shapes and no contents. A step runs as it is captured: once, and once more for the capture,
which must find the same. What is found wrong is a `FaultError`. Every number here is predicted.
"""

from __future__ import annotations

import copy
import csv
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from specdec_lib.config import StudyParams, load_params
from specdec_lib.decoding.captured_loop import drop_captured, graph_facts
from specdec_lib.decoding.progress import Progress
from specdec_lib.hardware.catalog import MEMORY_PLAN, Gpu, load_gpus, price
from specdec_lib.machine.environment import describe_environment
from specdec_lib.machine.fake_device import FakeDevice, FaultError, fake_device
from specdec_lib.methods import METHODS, RULES
from specdec_lib.models.checkpoints import RANDOM, random_model, random_shapes
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.pair import Pair, load_study_pair
from specdec_lib.models.presets import PRESETS
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import attention_geometry
from specdec_lib.models.tensor_parallel import check_heads
from specdec_lib.study.cells import NATURAL_PROMPT, Cell, Setting, block, settings
from specdec_lib.study.decode_cell import decode_cell
from specdec_lib.study.prompts import random_prompts
from specdec_lib.study.run_folder import read_cell
from specdec_lib.study.runner import BlockRunner, source_of

OWN_ENGINE = "specdec_lib"
REPORTS = 3  # that the host reads in a rehearsed call: of the prefill, of the step before a capture, of a replay
ROLES, AXES = ("target", "draft"), ("batch_sizes", "prompt_tokens", "max_new_tokens", "temperatures")
LAYERS = 4  # of models that are rehearsed with every kind of step
OUTSIDE_BYTES = 1.5e9  # of the driver, of libraries, and between the blocks of the allocator: a guess
PLAN_BATCHES, PLAN_TOKENS = (1, 32), (512, 4096)  # memory grows evenly between them and beyond
PLAN_OUTPUT, PLAN_GAMMA = 128, 4


@dataclass(frozen=True)
class Need:
    """The bytes that one setting takes of a GPU.

    Attributes:
        tokens: of a row, prompt and output.
        cache_bytes: keys and values of target and draft.
        peak_bytes: the most that is allocated at a time, all of the above and what a pass needs for itself.
        graph_bytes: what a captured step keeps for itself, next to what the prefill needs.
    """

    pair: str
    draft: str
    dtype: str
    batch_size: int
    tokens: int
    num_draft_tokens: int
    target_bytes: int
    draft_bytes: int
    cache_bytes: int
    peak_bytes: int
    graph_bytes: int

    @property
    def needed_bytes(self) -> float:
        """What the GPU must have."""
        return self.peak_bytes + self.graph_bytes + OUTSIDE_BYTES

    def of(self, gpu: Gpu) -> str:
        """What it needs of a product's memory, for a reader."""
        return f"{self.needed_bytes / 1e9:.1f} of {gpu.memory_gb:g} GB"

    def fits(self, gpu: Gpu) -> bool:
        """Whether a product has that much."""
        return self.needed_bytes <= gpu.memory_gb * 1e9


class Depth(NamedTuple):
    """Of a whole model whose first layers are rehearsed."""

    layers: int
    missing_bytes: int  # of the other layers' weights


Depths = Mapping[str, Depth]  # of target and draft
Point = tuple[int, int, int]  # batch size, tokens of a prompt, of its output


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found."""

    needs: list[Need]  # one for each setting, of the pair's own draft and of a draft head
    faults: list[str]


def product_of(params: StudyParams) -> str:
    """The key in `hardware/gpus.yaml` of the GPU that a study is for, by its price; ValueError if it is for none."""
    product = price(params.price).gpu
    if params.device != "cuda" or product not in load_gpus():
        raise ValueError(
            f"GPU={params.gpu} is no study of a GPU (device {params.device}, price of a {product}): choose one such as "
            "GPU=h100, whose params have device: cuda and the price of a product of hardware/gpus.yaml"
        )
    return product


def rehearse(params: StudyParams, report: Callable[[str], None] = print) -> Rehearsal:
    """Run two steps of every method, gamma, temperature, batch and context of a study, and a block of its sweep.

    Args:
        report: is told how each setting went.

    Raises:
        ValueError: the study is of no GPU, or its pair has no known configuration.
    """
    found = Rehearsal([], [])
    with fake_gpu(params) as device:
        device.precision = getattr(torch, params.dtype)
        whole = fake_pair(params)
        largest = max(settings(params), key=lambda each: (each.batch_size * _tokens(each), each.temperature))
        _rehearse_cells(device, whole, [largest_cell(params, whole, largest)], largest, None, found, report)
        own, depths = short_pair(params)
        for setting, cells in kinds_of_cells(params, own):
            drafted = [cell for cell in cells if cell.num_draft_tokens and METHODS[cell.method].uses_pair_draft]
            _rehearse_cells(device, own, cells, setting, depths, found, report)
            _rehearse_cells(device, with_head(own), drafted, setting, depths, found, report)
        found.faults.extend(_rehearse_sweep(params, own))
    return found


def _rehearse_cells(
    device: FakeDevice,
    pair: Pair,
    cells: list[Cell],
    setting: Setting,
    depths: Depths | None,
    found: Rehearsal,
    report: Callable[[str], None],
) -> None:
    """Add the most that a cell of a setting needs, and what is wrong with any of them."""
    started, needs = time.monotonic(), []
    for cell in cells:
        try:
            needs.append(rehearse_cell(device, pair, cell, depths))
        except Exception as error:  # noqa: BLE001 - each is a finding, and the others are tried
            found.faults.append(f"{pair.draft_id}: {cell}, rule {cell.verification}: {_one_line(error)}")
            report(f"fault: {found.faults[-1]}")
    if needs:
        found.needs.append(max(needs, key=lambda need: need.needed_bytes))
    kinds = f"{len(needs)} of {len(cells)} kinds of step, {'all' if depths is None else LAYERS} layers"
    report(f"{pair.draft_id}: {setting}: {kinds} ({time.monotonic() - started:.0f} s)")


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
    of_layer = [bytes_of(model.body.layers[-1].parameters()) for model in _models(pair)]
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


def _models(pair: Pair) -> list[LanguageModel]:
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
    last = pair.target.model.config.num_hidden_layers - 2
    tapped = tuple(sorted({0, last // 2, last} if last > 0 else ()))  # as many as EAGLE-3 reads, and the last state
    target = LanguageModel(pair.target.model, pair.target.name, tapped)
    target.active_engine = type(pair.target.active_engine)(*target._parts)
    head = DraftHead.random(target)
    return replace(pair, target=target, draft=head, draft_id=head.name)


def largest_cell(params: StudyParams, pair: Pair, setting: Setting) -> Cell:
    """The cell that needs the most: of the method with the most pieces, with the largest gamma."""
    cells = [cell for cell in block(params, source_of(params, pair), setting, 0) if cell.engine == OWN_ENGINE]
    return max(cells, key=lambda cell: (len(METHODS[cell.method].pieces), cell.num_draft_tokens or 0))


def kinds_of_cells(params: StudyParams, pair: Pair) -> Iterator[tuple[Setting, list[Cell]]]:
    """For each setting the cells that differ in their step; other rules than the study's at its headline."""
    source = source_of(params, pair)
    for setting in settings(params):
        cells = [cell for cell in block(params, source, setting, 0) if cell.engine == OWN_ENGINE]
        if setting.headline:
            of_rule = [each for each in cells if each.num_draft_tokens == params.headline_num_draft_tokens]
            cells += [
                replace(each, verification=rule) for rule in RULES for each in of_rule if each.verification != rule
            ]
        yield setting, cells


def rehearse_cell(device: FakeDevice, pair: Pair, cell: Cell, depths: Depths | None = None) -> Need:
    """Prefill, a step, and its capture; FaultError if a GPU could not do that.

    Args:
        depths: of the whole models, if these were shortened; then what is needed is that of the whole ones.
    """
    drop_captured(pair.target)
    captures, before, device.graph_bytes = device.captures, device.memory.allocated, 0
    torch.cuda.reset_peak_memory_stats()
    length = cell.prompt_tokens or NATURAL_PROMPT
    ids = torch.Generator().manual_seed(0)
    prompts = random_prompts(pair.target.vocab_size, cell.batch_size, length, ids)
    decode_cell(pair, cell, prompts, max_new_tokens=cell.max_new_tokens, seed=0)
    if device.captures == captures:
        raise FaultError(f"no step was captured: {graph_facts(pair.target)}")
    peak = device.memory.peak - before  # other models may be on the device too
    caches = {role: cache for (role, _), cache in pair.target.kept.caches.items()}  # type: ignore[attr-defined]
    held = {role: bytes_of([*cache.keys, *cache.values]) for role, cache in caches.items()}
    weights = {"target": bytes_of(pair.target.model.parameters()), "draft": bytes_of(_weights(pair.draft))}
    for role, depth in (depths or {}).items():
        if role == "target" or not isinstance(pair.draft, DraftHead):
            weights[role] += depth.missing_bytes
            layers = len(caches[role].keys) if role in caches else depth.layers
            peak += (more := held.get(role, 0) * (depth.layers - layers) // layers)
            held[role] = held.get(role, 0) + more
    drop_captured(pair.target)
    return Need(
        pair=pair.name.removesuffix(RANDOM),
        draft=pair.draft_id.removesuffix(RANDOM),
        dtype=str(pair.target.dtype).removeprefix("torch."),
        batch_size=cell.batch_size,
        tokens=length + cell.max_new_tokens,
        num_draft_tokens=cell.num_draft_tokens or 0,
        target_bytes=weights["target"],
        draft_bytes=weights["draft"],
        cache_bytes=sum(held.values()),
        peak_bytes=peak + sum(weights.values()),
        graph_bytes=device.graph_bytes,
    )


def _weights(draft: LanguageModel | DraftHead) -> list[torch.Tensor]:
    if isinstance(draft, LanguageModel):
        return [*draft.model.parameters()]
    return [*draft.parameters(), draft.output_rows]


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of these tensors, each storage once."""
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def _rehearse_sweep(params: StudyParams, pair: Pair) -> list[str]:
    """One block through the sweep's own runner, with its telemetry; returns what failed."""
    few = {"num_prompts": 1, "num_axis_prompts": 1, "repetitions": 1, "design": "one-at-a-time"}
    first = {
        name: getattr(params, name)[:1] for name in ("batch_sizes", "prompt_tokens", "max_new_tokens", "temperatures")
    }
    gamma = {"num_draft_tokens": [params.headline_num_draft_tokens], "compare_transformers": False}
    with tempfile.TemporaryDirectory() as folder:
        try:
            describe_environment(params)
            runner = BlockRunner(params.model_copy(update=few | first | gamma), Path(folder), pair)
            runner.run([0])
        except Exception as error:  # noqa: BLE001 - a finding
            return [f"the sweep: {_one_line(error)}"]
        rows = [row for cell in runner.blocks[0].cells for row in read_cell(Path(folder), cell.id)]
    return [f"the sweep, {row['method']}: {row['error']}" for row in rows if row["status"] != "ok"]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def needs_of(params: StudyParams, points: Iterable[Point], num_draft_tokens: int) -> list[Need]:
    """What a study needs at these batches, prompts and outputs, of its method that needs the most, at its last T."""
    needs = []
    with fake_gpu(params) as device:
        pair, depths = short_pair(params)
        for model in _models(pair):
            model.context_length = 2**20  # whatever is asked for
        for batch_size, prompt_tokens, new_tokens in points:
            point = {
                "batch_sizes": [batch_size], "prompt_tokens": [prompt_tokens], "max_new_tokens": [new_tokens],
                "num_draft_tokens": [num_draft_tokens], "headline_num_draft_tokens": num_draft_tokens,
                "temperatures": params.temperatures[-1:],
            }  # fmt: skip
            one = params.model_copy(update=point)
            needs.append(rehearse_cell(device, pair, largest_cell(one, pair, settings(one)[0]), depths))
    return needs


def check_memory(params: StudyParams) -> None:
    """Refuse a study whose largest setting needs more memory than its GPU has.

    Raises:
        ValueError: names what is needed and the largest batch that would fit.
    """
    gpu = load_gpus()[product_of(params)]
    try:
        random_shapes(params)
    except ValueError:
        return  # a model without a known configuration
    largest = max(settings(params), key=lambda each: each.batch_size * _tokens(each))
    point = largest.prompt_tokens or NATURAL_PROMPT, largest.max_new_tokens
    need, one = needs_of(params, [(batch, *point) for batch in (largest.batch_size, 1)], max(largest.num_draft_tokens))
    if need.fits(gpu):
        return
    per_row = (need.needed_bytes - one.needed_bytes) / max(largest.batch_size - 1, 1)
    room = gpu.memory_gb * 1e9 - one.needed_bytes
    remedy = "choose a smaller pair or tensor_parallel: the models alone leave no room for one row"
    if room >= 0:
        remedy = f"lower batch_sizes to {1 + int(room / per_row)}, or prompt_tokens or max_new_tokens"
    raise ValueError(
        f"{params.pair} with batch {largest.batch_size} at {need.tokens:,} tokens needs {need.of(gpu)} of a "
        f"{gpu.product} (predicted): {remedy}"
    )


def _tokens(setting: Setting) -> int:
    return (setting.prompt_tokens or NATURAL_PROMPT) + setting.max_new_tokens


def write_plan(path: Path = MEMORY_PLAN) -> Path:
    """Write what every preset pair needs with one H100's params, at the batches and contexts of the plan."""
    points = [(batch, tokens - PLAN_OUTPUT, PLAN_OUTPUT) for batch, tokens in product(PLAN_BATCHES, PLAN_TOKENS)]
    needs = []
    for pair in PRESETS:
        params = load_params("h100", {"pair": pair, "methods": ["composite"]})  # it needs what both of its parts do
        needs += needs_of(params, points, PLAN_GAMMA)
    lines = [asdict(need) | {"needed_bytes": round(need.needed_bytes)} for need in needs]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(
            f"# Predicted on a fake device with torch {torch.__version__}; made by gpu-rehearsal --write-plan.\n"
        )
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return path
