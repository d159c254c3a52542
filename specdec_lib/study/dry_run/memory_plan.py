"""The memory that a study takes of its GPU, counted in a rehearsal; every number is predicted."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch

from specdec_lib.config import StudyParams
from specdec_lib.decoding.captured_loop import drop_captured, graph_facts
from specdec_lib.hardware.catalog import MEMORY_PLAN, Gpu, load_gpus
from specdec_lib.machine.fake_device import FakeDevice, FaultError
from specdec_lib.methods import METHODS
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.loading.checkpoints import RANDOM
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.params_files import load_params
from specdec_lib.study.cells import NATURAL_PROMPT, Cell, Setting, block, settings
from specdec_lib.study.decode_cell import decode_cell
from specdec_lib.study.dry_run.fake_gpu import (
    Depths,
    bytes_of,
    check_captured,
    fake_gpu,
    models_of,
    product_of,
    short_pair,
)
from specdec_lib.study.prompts import random_prompts
from specdec_lib.study.runner import source_of

OUTSIDE_BYTES = 1.5e9  # of the driver, of libraries, and between the blocks of the allocator: a guess
PLAN_BATCHES, PLAN_TOKENS = (1, 32), (512, 4096)  # memory grows evenly between them and beyond
PLAN_OUTPUT, PLAN_GAMMA = 128, 4

Point = tuple[int, int, int]  # batch size, tokens of a prompt, of its output


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
    if device.captures == captures and METHODS[cell.method].capturable:
        raise FaultError(f"no step was captured: {graph_facts(pair.target)}")
    peak = device.memory.peak - before  # other models may be on the device too
    caches = {role: cache for (role, _), cache in getattr(pair.target.kept, "caches", {}).items()}
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


def cells_of(params: StudyParams, pair: Pair, setting: Setting) -> list[Cell]:
    """The cells of a setting, of its first prompts, that this library decodes."""
    return [cell for cell in block(params, source_of(params, pair), setting, 0) if cell.engine == "specdec_lib"]


def largest_cell(params: StudyParams, pair: Pair, setting: Setting) -> Cell:
    """The cell that needs the most: of the method with the most pieces, with the largest gamma."""
    cells = cells_of(params, pair, setting)
    return max(cells, key=lambda cell: (len(METHODS[cell.method].pieces), cell.num_draft_tokens or 0))


def needs_of(params: StudyParams, points: Iterable[Point], num_draft_tokens: int) -> list[Need]:
    """What a study needs at these batches, prompts and outputs, of its method that needs the most, at its last T."""
    needs = []
    with fake_gpu(params) as device:
        pair, depths = short_pair(params)
        for model in models_of(pair):
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
        check_captured(params)
    except ValueError:
        return  # a model without a known configuration, or without captured steps
    largest = max(settings(params), key=lambda each: each.batch_size * tokens_of(each))
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


def tokens_of(setting: Setting) -> int:
    """Of a row, prompt and output."""
    return (setting.prompt_tokens or NATURAL_PROMPT) + setting.max_new_tokens


def write_plan(path: Path = MEMORY_PLAN) -> Path:
    """Write what every preset pair needs with one H100's params, at the batches and contexts of the plan."""
    points = [(batch, tokens - PLAN_OUTPUT, PLAN_OUTPUT) for batch, tokens in product(PLAN_BATCHES, PLAN_TOKENS)]
    needs = []
    for pair in PRESETS:
        params = load_params("h100", {"pair": pair, "methods": ["composite"]})  # it needs what both of its parts do
        with suppress(ValueError):  # pairs that are read row by row are left out
            check_captured(params)
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
