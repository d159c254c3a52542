"""Published facts about GPUs, models and prices. Each has a source and a date, and is checked on reading."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

FOLDER = Path(__file__).resolve().parent
CPU = "cpu"  # the `gpu` of a price for a machine without one

# The highest dense figures of a generation, by the first word of a product's name. Higher figures are sparse ones.
DENSE_PEAKS: dict[str, dict[str, float]] = {
    "A100": {"bf16_tflops": 312, "int8_tops": 624},
    "H100": {"bf16_tflops": 989.5, "fp8_tflops": 1979, "int8_tops": 1979},
    "H200": {"bf16_tflops": 989.5, "fp8_tflops": 1979, "int8_tops": 1979},
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
    nvlink_gb_per_s: Positive | None
    date: MonthOrDay

    @model_validator(mode="after")
    def _figures_are_dense(self) -> Gpu:
        for figure, peak in DENSE_PEAKS.get(self.product.split()[0], {}).items():
            if (value := getattr(self, figure) or 0) > peak:
                raise ValueError(
                    f"{figure} is {value:g}, above the dense peak {peak:g}: give the dense figure, not the sparse"
                )
        return self


class Price(Fact):
    """On-demand dollars for an hour of one GPU, or of one machine if `gpu` is "cpu"."""

    gpu: str  # a key of gpus.yaml, or "cpu"
    usd_per_hour: Positive
    vendor: str
    region: str
    date: datetime.date

    @model_validator(mode="after")
    def _gpu_is_known(self) -> Price:
        _check_known("gpu", self.gpu, {CPU, *load_gpus()})
        return self

    def times(self, number: int) -> Price:
        """The price of `number` of them."""
        several = f"{number} GPUs of {self.vendor}"
        changes = {"usd_per_hour": self.usd_per_hour * number, "vendor": several} if number > 1 else {}
        return self.model_copy(update=changes)


class Model(Fact):
    """The fields of a Hugging Face config that decide a model's size, and the number of its parameters.

    A study reads the weights from `hub_id` at the commit `revision`. `weights` is the SHA-256 of each weight file that
    we know from a source other than the hub.
    """

    config: dict[str, str | int | float | bool | None]
    parameters: int = Field(gt=0)
    date: MonthOrDay
    hub_id: str | None = None
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    weights: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}


class Published(Fact):
    """A published result, with the setting that a prediction of it needs.

    `measure` says what `value` is: "tokens_per_second", "speedup" on a GPU, or "formula": a speedup for which the paper
    gives the inputs of its own formula.
    """

    measure: Literal["tokens_per_second", "speedup", "formula"]
    value: Positive
    setting: str = Field(min_length=1)
    date: MonthOrDay
    gpu: str | None = None  # a key of gpus.yaml
    num_gpus: int = 1
    engine: Literal["graph", "eager"] | None = None  # kernels started from a captured graph, or one by one
    dtype: str | None = None
    target: str | None = None  # target and draft are keys of models.yaml
    draft: str | None = None  # "layer": one layer of the target with its output layer, as in EAGLE
    batch_size: int = 1
    context_tokens: int = 0
    num_draft_tokens: int | None = None
    verified_tokens: int | None = None  # of one pass, where a tree of drafts makes it other than gamma + 1
    tokens_per_pass: Positive | None = None  # published
    acceptance_rate: Positive | None = None  # published, or a guess between the two that follow
    acceptance_rate_low: Positive | None = None
    acceptance_rate_high: Positive | None = None
    cost_ratio: float | None = None  # the paper's c

    @model_validator(mode="after")
    def _names_are_known(self) -> Published:
        _check_known("gpu", self.gpu, {None, *load_gpus()})
        for name in (self.target, self.draft):
            _check_known("model", name, {None, "layer", *load_models()})
        return self


def _check_known(kind: str, name: str | None, known: Container[str | None]) -> None:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {kind}s.yaml, or add it there")


Entry = TypeVar("Entry", Gpu, Price, Model, Published)


def _load(path: Path, kind: type[Entry]) -> dict[str, Entry]:
    """Read all entries of a file by key.

    Raises:
        ValueError: an entry lacks a fact or states an impossible one; one line that names it.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, kind]).validate_python(entries)  # type: ignore[valid-type]
    except ValidationError as error:
        first = error.errors()[0]
        name, *keys = map(str, first["loc"] or ("the file",))
        if first["type"] == "missing":
            raise ValueError(f"{path.name}: {name} has no {keys[-1]}: add it, every entry needs one") from None
        where = ": ".join([name, *keys])
        raise ValueError(f"{path.name}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


@cache
def load_gpus(path: Path = FOLDER / "gpus.yaml") -> dict[str, Gpu]:
    """All GPUs by key; ValueError for an entry that lacks a fact, or gives a sparse figure."""
    return _load(path, Gpu)


@cache
def load_models(path: Path = FOLDER / "models.yaml") -> dict[str, Model]:
    """All models by key; ValueError for an entry that lacks a fact."""
    return _load(path, Model)


def load_prices(path: Path = FOLDER / "prices.yaml") -> dict[str, Price]:
    """All prices by key; ValueError for an entry without date, source or positive price, or for an unknown GPU."""
    return _load(path, Price)


def load_published(path: Path = FOLDER / "published.yaml") -> dict[str, Published]:
    """All published results by key; ValueError for an entry that lacks a fact, or for an unknown GPU or model."""
    return _load(path, Published)


def price(name: str) -> Price:
    """The price called `name`.

    Raises:
        ValueError: no such price; near matches are named.
    """
    prices = load_prices()
    if name not in prices:
        near = difflib.get_close_matches(name, prices, n=3) or sorted(prices)
        raise ValueError(f"unknown price {name!r}: choose one of {', '.join(near)}, or add it to hardware/prices.yaml")
    return prices[name]


def usd_per_million_tokens(tokens_per_second: float, usd_per_hour: float) -> float:
    """Dollars for a million emitted tokens, prefill time included, on a device that does nothing else.

    Raises:
        ValueError: the rate is not positive, or the price is negative.
    """
    if not tokens_per_second > 0:
        raise ValueError(f"tokens_per_second is {tokens_per_second}: give a measured positive rate")
    if usd_per_hour < 0:
        raise ValueError(f"usd_per_hour is {usd_per_hour}: give 0 or a positive price")
    return usd_per_hour / 3600 / tokens_per_second * 1e6
