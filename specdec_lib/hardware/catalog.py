"""Published facts about GPUs, models and prices. Each has a source and a date, and is checked on reading."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

LAYER = "layer"  # as a draft: the first layer of the target with its output layer, as EAGLE's
FOLDER = Path(__file__).resolve().parent
MEMORY_PLAN = FOLDER / "memory.csv"  # what each preset pair needs, predicted
CPU = "cpu"  # the `gpu` of a price for a machine without one
TOLERANCE = 0.1  # of memory and power: vendors' 80 GB are read as 85.5e9 bytes on an H100 and 85.9e9 on an A100

# The highest dense figures of a generation, by the first word of a product's name. Higher figures are sparse ones.
DENSE_PEAKS: dict[str, dict[str, float]] = {
    "A100": {"bf16_tflops": 312, "int8_tops": 624},
    "H100": {"bf16_tflops": 989.5, "fp8_tflops": 1979, "int8_tops": 1979},
    "H200": {"bf16_tflops": 989.5, "fp8_tflops": 1979, "int8_tops": 1979},
}


class WeightForm(NamedTuple):
    """How a quantised checkpoint holds matrices: bytes of a weight with its scales, and of which parts."""

    bytes_per_weight: float
    only_experts: bool = False  # of a mixture; else of all matrices in layers


WEIGHT_FORMS = {  # embedding and output layer stay in 16 bits
    "fp8": WeightForm(1 + 4 / 128**2),  # a float32 scale for each block of 128 x 128
    "awq": WeightForm((4 + (16 + 4) / 128) / 8),  # 4 bits; groups of 128 have a scale and a zero
    "mxfp4": WeightForm((4 + 8 / 32) / 8, only_experts=True),  # 4 bits; groups of 32 have a scale
}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MonthOrDay = Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]


class Fact(BaseModel):
    """Where a fact comes from. `secondary` marks a transcription of the original."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    secondary: bool
    note: str = ""


class Gpu(Fact):
    """One product: memory in GB (1e9 bytes), bandwidth in TB/s, dense TFLOP/s and TOP/s, power in watts."""

    product: str
    nvml_names: tuple[str, ...] = ()  # the driver's names for it, exactly
    memory_gb: Positive
    bandwidth_tb_per_s: Positive
    bf16_tflops: Positive
    fp8_tflops: Positive | None
    int8_tops: Positive | None
    tdp_watts: Positive
    date: MonthOrDay

    @model_validator(mode="after")
    def _figures_are_dense(self) -> Gpu:
        for figure, peak in DENSE_PEAKS.get(self.product.split()[0], {}).items():
            if (value := getattr(self, figure) or 0) > peak:
                what = f"{figure} is {value:g}, above the dense peak {peak:g}"
                raise ValueError(f"{what}: give the dense figure, not the sparse")
        return self


def _check_known(name: str, known: Mapping[str, object], *others: str) -> str:
    if name not in {*known, *others}:
        raise ValueError(f"{name!r} is unknown: choose an entry of hardware/*.yaml, or add it there")
    return name


class Price(Fact):
    """On-demand dollars for an hour of one GPU, or of one machine with so many `vcpus` if `gpu` is "cpu"."""

    gpu: Annotated[str, AfterValidator(lambda name: _check_known(name, load_gpus(), CPU))]
    usd_per_hour: Positive
    vendor: str
    region: str
    date: datetime.date
    vcpus: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _a_cpu_has_its_size(self) -> Price:
        if (self.gpu == CPU) != (self.vcpus is not None):
            raise ValueError(f"vcpus is {self.vcpus} and gpu {self.gpu}: give vcpus for gpu: {CPU}, and only there")
        return self

    def times(self, number: int) -> Price:
        """The price of `number` GPUs, or of so many virtual CPUs: vendors price machines of a family by their size."""
        what = "vCPU" if self.vcpus else "GPUs"
        changes = {
            "usd_per_hour": self.usd_per_hour * number / (self.vcpus or 1),
            "vendor": f"{number} {what} of {self.vendor}",
        }
        return self.model_copy(update=changes) if number != (self.vcpus or 1) else self


class Model(Fact):
    """The fields of a Hugging Face config that decide a model's size, and the number of its parameters."""

    config: dict[str, Any]
    parameters: int = Field(gt=0)
    quantised: Literal["fp8", "awq", "mxfp4"] | None = None  # the form of the checkpoint's weights, of WEIGHT_FORMS
    date: MonthOrDay
    hub_id: str | None = None  # where a study reads the weights
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")  # the hub's commit
    weights: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}  # SHA-256 known from elsewhere, by file


ModelName = Annotated[str, AfterValidator(lambda name: _check_known(name, load_models(), LAYER))]


class Published(Fact):
    """A published result, with the setting that a prediction of it needs."""

    measure: Literal["tokens_per_second", "speedup", "formula"]  # formula: a speedup by the paper's own
    value: Positive
    setting: str = Field(min_length=1)
    date: MonthOrDay
    gpu: Annotated[str, AfterValidator(lambda name: _check_known(name, load_gpus()))] | None = None
    num_gpus: int = 1
    engine: Literal["graph", "eager"] | None = None  # kernels started from a captured graph, or one by one
    dtype: str | None = None
    target: ModelName | None = None
    draft: ModelName | None = None  # or `LAYER`
    batch_size: int = 1
    context_tokens: int = 0
    num_draft_tokens: int | None = None
    verified_tokens: int | None = None  # of one pass, where a tree of drafts makes it other than gamma + 1
    tokens_per_pass: Positive | None = None  # published
    acceptance_rate: Positive | None = None  # published, or a guess between the two that follow
    acceptance_rate_low: Positive | None = None
    acceptance_rate_high: Positive | None = None
    cost_ratio: float | None = None  # the paper's c


Entry = TypeVar("Entry", Gpu, Price, Model, Published)


def _load(path: Path, kind: type[Entry]) -> dict[str, Entry]:
    """All entries of a file by key; ValueError of one line that names an entry which is not sound."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, kind]).validate_python(entries)  # type: ignore[valid-type]
    except ValidationError as error:
        # an unknown key first: it may be a missing one, misspelt
        details: Mapping[str, Any] = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where = ": ".join([path.name, *map(str, details["loc"])])
        raise ValueError(f"{where}: {details['msg'].removeprefix('Value error, ')}") from None


@cache
def load_gpus(path: Path = FOLDER / "gpus.yaml") -> dict[str, Gpu]:
    """All GPUs by key; ValueError for an unsound entry, as in all four files."""
    return _load(path, Gpu)


@cache
def load_models(path: Path = FOLDER / "models.yaml") -> dict[str, Model]:
    """All models by key."""
    return _load(path, Model)


def load_prices(path: Path = FOLDER / "prices.yaml") -> dict[str, Price]:
    """All prices by key."""
    return _load(path, Price)


def load_published(path: Path = FOLDER / "published.yaml") -> dict[str, Published]:
    """All published results by key."""
    return _load(path, Published)


def price(name: str) -> Price:
    """The price called `name`; ValueError if there is none, with those whose names are near."""
    prices = load_prices()
    if name not in prices:
        near = difflib.get_close_matches(name, prices, n=3) or sorted(prices)
        raise ValueError(f"unknown price {name!r}: choose one of {', '.join(near)}, or add it to hardware/prices.yaml")
    return prices[name]


def usd_per_million_tokens(tokens_per_second: float, usd_per_hour: float) -> float:
    """Dollars for a million emitted tokens; ValueError if the rate is not positive, or the price is negative."""
    if not (tokens_per_second > 0 and usd_per_hour >= 0):
        given = f"tokens_per_second is {tokens_per_second} and usd_per_hour {usd_per_hour}"
        raise ValueError(f"{given}: give a measured positive rate and a price of 0 or more")
    return usd_per_hour / 3600 / tokens_per_second * 1e6


def identify(name: str, memory_bytes: int, default_power_limit_watts: float | None = None) -> str:
    """The key in `gpus.yaml` of the product that the driver calls `name`.

    A listed name decides, and the memory must agree with it. Virtual machines often report the family only; then memory
    and the factory's power limit of the whole device decide.

    Raises:
        ValueError: a part of a GPU (MIG), a product that is not in the catalog, or facts that fit several or none.
    """
    gpus = load_gpus()
    if " MIG " in f"{name} ":
        raise ValueError(f"{name!r} is a part of a GPU (MIG): figures of the whole product do not hold for it")
    listed = [key for key, gpu in gpus.items() if name in gpu.nvml_names]
    # a family is a word of the name; "GRID A100X-80C" has no such word
    words = [family for family in DENSE_PEAKS if re.search(rf"(?<![A-Z0-9]){family}(?![A-Z0-9])", name.upper())]
    of_family = [key for key, gpu in gpus.items() if gpu.product.split()[0] in words]
    fitting = [k for k in listed or of_family if abs(memory_bytes / gpus[k].memory_gb / 1e9 - 1) <= TOLERANCE]
    if not listed and default_power_limit_watts is not None:
        fitting = [k for k in fitting if abs(default_power_limit_watts / gpus[k].tdp_watts - 1) <= TOLERANCE]
    if len(fitting) == 1:
        return fitting[0]
    power = "an unknown power limit" if default_power_limit_watts is None else f"{default_power_limit_watts:g} W"
    facts = f"{name!r} with {memory_bytes / 1e9:.1f} GB and {power}"
    if fitting:
        raise ValueError(f"{facts} may be {' or '.join(fitting)}: add its name to nvml_names in hardware/gpus.yaml")
    raise ValueError(f"{facts} is no product of hardware/gpus.yaml: add an entry with its dense figures and source")
