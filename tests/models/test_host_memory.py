"""Weights and caches lie in huge pages where Linux gives them; what has ended holds no memory."""

from __future__ import annotations

import gc
import platform
import re
from pathlib import Path

import psutil
import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

from specdec_lib.distill.students import layers_of_target
from specdec_lib.models import host_memory
from specdec_lib.models.cache import LayerShape, RaggedStaticCache
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.loading.checkpoints import load_language_model
from specdec_lib.models.plain_draft import load_plain_draft

CPU = torch.device("cpu")
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_huge_pages = pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this system gives no huge pages"
)


def in_huge_pages() -> int:
    """Bytes of this process that lie in them."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found
    return int(found[1]) * 1024


@needs_huge_pages
def test_what_fills_huge_pages_lies_in_them_and_is_given_back() -> None:
    before = in_huge_pages()
    kept = host_memory.zeros([(1000, 1000)] * 16, torch.float32, CPU)  # 64 MB
    for tensor in kept:
        tensor.fill_(1)
    assert in_huge_pages() - before >= 56e6
    del kept, tensor
    gc.collect()
    assert in_huge_pages() - before < 8e6


@pytest.mark.parametrize("shapes", [[(3, 5), (2, 2, 7)], [(1000, 999), (7,), (300, 1001)]], ids=["few", "many"])
def test_they_are_zeros_apart_from_each_other(shapes: list[tuple[int, ...]]) -> None:
    tensors = host_memory.zeros(shapes, torch.float32, CPU)
    assert [tuple(tensor.shape) for tensor in tensors] == shapes
    assert all(tensor.is_contiguous() and not tensor.any() for tensor in tensors)
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)
    assert [tensor.unique().item() for tensor in tensors] == [number + 1 for number in range(len(shapes))]


def test_nothing_can_be_asked_for() -> None:
    tensors = host_memory.zeros([(0, 3), (2000, 2000)], torch.float32, CPU)
    assert [tuple(tensor.shape) for tensor in tensors] == [(0, 3), (2000, 2000)]


def test_moving_a_module_changes_no_weight_and_keeps_shared_ones_shared() -> None:
    module = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 1000).bfloat16(), nn.Linear(1000, 1000))
    module[2].weight = module[0].weight
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    parameters = list(module.parameters())
    host_memory.move(module)
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())
    assert all(weight is parameter for weight, parameter in zip(module.parameters(), parameters, strict=True))
    assert module[2].weight is module[0].weight
    assert module[0].weight.data_ptr() % host_memory.LINE == 0


def test_a_loaded_model_computes_with_the_weights_that_it_has(tmp_path: Path) -> None:
    """None of them twice: what was moved is what the kernels, the model itself and a plain draft look at."""
    tiny_llama(hidden_size=256, intermediate_size=1024).bfloat16().save_pretrained(tmp_path / "target")
    target = load_language_model(str(tmp_path / "target"), "cpu", "bfloat16", "target")
    rows = target.model.get_input_embeddings().weight
    assert target.head.weight is rows
    if isinstance(engine := target.active_engine, KernelEngine):
        moved = {weight.data_ptr() for weight in target.model.parameters()}
        assert {weight.data_ptr() for weight in [*engine.layers.weights, engine.embeddings, engine.last_norm]} <= moved
    layers_of_target(target.model, (0, -1), torch.arange(96)).draft.save(tmp_path / "plain")
    plain = load_plain_draft(tmp_path / "plain", target)
    assert plain.model.get_input_embeddings().weight.data_ptr() == rows.data_ptr()


def test_a_cache_is_zeros_of_its_shape_whatever_its_size() -> None:
    for capacity in (64, 4096):
        cache = RaggedStaticCache(2, capacity, [LayerShape(2, 64, 2, 64)] * 3, dtype=torch.bfloat16, device=CPU)
        kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        assert {tuple(tensor.shape) for tensor in kept} == {(2, 2, capacity, 64)}
        assert not any(tensor.any() for tensor in kept)
        assert len({tensor.data_ptr() for tensor in kept}) == 6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_what_the_c_library_keeps_is_given_back() -> None:
    pieces = [torch.ones(2**14) for _ in range(2000)]  # 128 MB; the last one holds the others' place
    del pieces[:-1]
    host_memory.give_back()
    before = psutil.Process().memory_info().rss
    pieces += [torch.ones(2**14) for _ in range(2000)]
    del pieces[1:-1]
    kept = psutil.Process().memory_info().rss - before
    host_memory.give_back()
    assert psutil.Process().memory_info().rss - before < kept - 100e6
