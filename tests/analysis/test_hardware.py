"""The catalog of GPUs and prices: what ships is sound, and what is unsound is refused in one line."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import yaml

from specdec_lib.hardware import catalog
from specdec_lib.params_files import available_params, load_params


def entry(kind: str, name: str) -> dict[str, object]:
    return yaml.safe_load((catalog.FOLDER / f"{kind}.yaml").read_text())[name]


def write(path: Path, name: str, facts: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump({name: facts}))
    return path


def test_dense_figures_of_the_h100() -> None:
    gpu = catalog.load_gpus()["h100-sxm"]
    assert (gpu.bf16_tflops, gpu.bandwidth_tb_per_s, gpu.memory_gb) == (989, 3.35, 80)


def test_every_fact_has_a_source_and_a_day() -> None:
    for fact in [*catalog.load_gpus().values(), *catalog.load_prices().values()]:
        assert fact.source
        assert fact.date
    assert all(isinstance(price.date, date) for price in catalog.load_prices().values())


@pytest.mark.parametrize("name", available_params())
def test_the_price_of_a_study_is_of_its_device(name: str) -> None:
    params = load_params(name)
    gpu = catalog.price(params.price).gpu
    assert gpu == "cpu" if params.device == "cpu" else params.device_name.lower() in gpu


def test_unknown_price_names_near_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown price 'aws-us-east-1-h10': choose one of aws-us-east-1-h100"):
        catalog.price("aws-us-east-1-h10")


def test_sparse_figure_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "gpus.yaml", "h100-sxm", entry("gpus", "h100-sxm") | {"bf16_tflops": 1979})
    with pytest.raises(
        ValueError, match=r"gpus.yaml: h100-sxm: bf16_tflops is 1979, above the dense peak .* not the sparse$"
    ):
        catalog.load_gpus(path)


def test_price_without_a_date_is_refused(tmp_path: Path) -> None:
    facts = entry("prices", "cpu-2-vcpu")
    del facts["date"]
    with pytest.raises(ValueError, match=r"prices.yaml: cpu-2-vcpu: date: Field required"):
        catalog.load_prices(write(tmp_path / "prices.yaml", "cpu-2-vcpu", facts))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"gpu": "h1000"}, "gpu: 'h1000' is unknown"), ({"usd_per_hour": 0}, "usd_per_hour"), ({"usd": 1}, "usd: Extra")],
)
def test_unsound_price_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path / "prices.yaml", "x", entry("prices", "lambda-h100") | change)
    with pytest.raises(ValueError, match=f"prices.yaml: x: {message}") as caught:
        catalog.load_prices(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mebibytes", "watts", "product"),
    [  # as nvidia-smi prints them
        ("NVIDIA A100-PCIE-40GB", 40_960, 250, "a100-pcie-40"),
        ("NVIDIA A100 80GB PCIe", 81_920, 300, "a100-pcie-80"),
        ("NVIDIA A100-SXM4-40GB", 40_960, 400, "a100-sxm-40"),
        ("NVIDIA A100-SXM4-80GB", 81_920, 330, "a100-sxm-80"),  # limited by its owner: a listed name decides
        ("NVIDIA H100 PCIe", 81_559, 350, "h100-pcie"),
        ("NVIDIA H100 80GB HBM3", 81_559, 700, "h100-sxm"),
        ("NVIDIA H100 NVL", 95_830, 400, "h100-nvl"),
        ("NVIDIA H200", 143_771, 700, "h200-sxm"),
        ("NVIDIA A100", 81_920, 300, "a100-pcie-80"),  # the family only: memory and power limit tell the product
        ("NVIDIA A100", 40_960, 400, "a100-sxm-40"),
        ("NVIDIA H100", 81_559, 350, "h100-pcie"),
    ],
)
def test_products_are_told_apart_by_name_memory_and_power_limit(
    name: str, mebibytes: int, watts: float, product: str
) -> None:
    assert catalog.identify(name, mebibytes * 2**20, watts) == product


@pytest.mark.parametrize(
    ("name", "mebibytes", "watts", "message"),
    [
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9_728, 400, "a part of a GPU"),
        ("NVIDIA H100", 81_559, None, "may be h100-pcie or h100-sxm"),
        ("NVIDIA H100 80GB HBM3", 40_000, 700, "no product of hardware/gpus.yaml"),
        ("NVIDIA H800", 81_559, 700, "no product of hardware/gpus.yaml"),
        ("NVIDIA GeForce RTX 4090", 24_564, 450, "add an entry with its dense figures"),
    ],
)
def test_what_is_not_one_known_product_is_refused(name: str, mebibytes: int, watts: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.identify(name, mebibytes * 2**20, watts)
