"""Published facts about GPUs and dated prices, each with its source; checked when they are read."""

from __future__ import annotations

import difflib
from datetime import date as Date  # noqa: N812 - the field below is called date
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FOLDER = Path(__file__).resolve().parent
CPU = "cpu"  # the `gpu` of a price for a machine without one

# The highest dense figures of any product of a generation, by the first word of its name: above them is sparse.
DENSE_PEAKS: dict[str, dict[str, float]] = {
    "A100": {"bf16_tflops": 312, "int8_tops": 624},
    "H100": {"bf16_tflops": 989.5, "fp8_tflops": 1979, "int8_tops": 1979},
    "H200": {"bf16_tflops": 989.5, "fp8_tflops": 1979, "int8_tops": 1979},
}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Fact(BaseModel):
    """Where a fact comes from. `secondary` marks a transcription of the original."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    secondary: bool
    note: str = ""


class Gpu(Fact):
    """One product: memory in GB (1e9 bytes), bandwidth in TB/s, dense TFLOP/s and TOP/s, power in watts."""

    product: str
    nvml_names: tuple[str, ...] = ()  # what the driver calls it, exactly
    memory_gb: Positive
    bandwidth_tb_per_s: Positive
    bf16_tflops: Positive
    fp8_tflops: Positive | None
    int8_tops: Positive | None
    tdp_watts: Positive
    nvlink_gb_per_s: Positive | None
    date: str = Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")  # to the month where the source says no more

    @model_validator(mode="after")
    def _dense(self) -> Gpu:
        for figure, peak in DENSE_PEAKS.get(self.product.split()[0], {}).items():
            value = getattr(self, figure)
            if value is not None and value > peak:
                raise ValueError(
                    f"{figure} is {value:g}, above the dense peak {peak:g}: give the dense figure, not the sparse"
                )
        return self


class Price(Fact):
    """On-demand dollars for an hour of one GPU, or of one machine if `gpu` is "cpu", read on `date`."""

    gpu: str  # a key of gpus.yaml, or "cpu"
    usd_per_hour: Positive
    vendor: str
    region: str
    date: Date

    def times(self, number: int) -> Price:
        """The price of so many of them."""
        several = f"{number} GPUs of {self.vendor}"
        changes = {"usd_per_hour": self.usd_per_hour * number, "vendor": several} if number > 1 else {}
        return self.model_copy(update=changes)


class Model(Fact):
    """The fields of a model's Hugging Face config that decide its size, and how many parameters it has."""

    config: dict[str, str | int | float | bool | None]
    parameters: int = Field(gt=0)
    date: str = Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")


class Published(Fact):
    """A result that somebody else published, with the setting in which a prediction of it can be made.

    `measure` says what `value` is: "tokens_per_second", "speedup" on a GPU, or "formula", a speedup for which the paper
    gives what its own formula needs.
    """

    measure: Literal["tokens_per_second", "speedup", "formula"]
    value: Positive
    setting: str = Field(min_length=1)
    date: str = Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")
    gpu: str | None = None  # a key of gpus.yaml
    num_gpus: int = 1
    engine: Literal["graph", "eager"] | None = None  # kernels started from a captured graph, or one by one
    dtype: str | None = None
    target: str | None = None  # keys of models.yaml
    draft: str | None = None  # "layer" is one layer of the target with its output layer, as EAGLE's
    batch_size: int = 1
    context_tokens: int = 0
    num_draft_tokens: int | None = None
    verified_tokens: int | None = None  # of a pass, where a tree of drafts makes it other than gamma + 1
    tokens_per_pass: Positive | None = None  # published
    acceptance_rate: Positive | None = None  # published, or a guess between the two that follow
    acceptance_rate_low: Positive | None = None
    acceptance_rate_high: Positive | None = None
    cost_ratio: float | None = None  # the paper's c


Entry = TypeVar("Entry", Gpu, Price, Model, Published)


def load_gpus(path: Path = FOLDER / "gpus.yaml") -> dict[str, Gpu]:
    """All GPUs by key.

    Raises:
        ValueError: an entry that lacks a fact, or gives a sparse figure; one line that names it.
    """
    return _load(path, Gpu)


def load_models(path: Path = FOLDER / "models.yaml") -> dict[str, Model]:
    """All models by key.

    Raises:
        ValueError: an entry that lacks a fact; one line that names it.
    """
    return _load(path, Model)


def load_published(path: Path = FOLDER / "published.yaml") -> dict[str, Published]:
    """All published results by key.

    Raises:
        ValueError: an entry that lacks a fact, or names an unknown GPU or model; one line that names it.
    """
    points = _load(path, Published)
    gpus, models = load_gpus(), load_models()
    for name, point in points.items():
        if point.gpu is not None and point.gpu not in gpus:
            raise ValueError(f"{path.name}: {name}: unknown gpu {point.gpu!r}: choose one of {', '.join(sorted(gpus))}")
        for model in (point.target, point.draft):
            if model not in (None, "layer", *models):
                raise ValueError(f"{path.name}: {name}: unknown model {model!r}: add it to models.yaml")
    return points


def load_prices(path: Path = FOLDER / "prices.yaml") -> dict[str, Price]:
    """All prices by key.

    Raises:
        ValueError: an entry without a date, source or positive price, or for an unknown GPU; one line that names it.
    """
    prices = _load(path, Price)
    known = {CPU, *load_gpus()}
    for name, entry in prices.items():
        if entry.gpu not in known:
            raise ValueError(
                f"{path.name}: {name}: unknown gpu {entry.gpu!r}: choose one of {', '.join(sorted(known))}"
            )
    return prices


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


def _load(path: Path, kind: type[Entry]) -> dict[str, Entry]:
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise ValueError(f"{path.name} holds no entries: restore it from the repository")
    return {name: _entry(path, name, facts, kind) for name, facts in entries.items()}


def _entry(path: Path, name: str, facts: object, kind: type[Entry]) -> Entry:
    try:
        return kind.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"{path.name}: {name} has no {key}: add it, every entry needs one") from None
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path.name}: {name}: {key + ': ' if key else ''}{reason}") from None
