"""What a study is told: `StudyParams` from a flat YAML file, and `SamplingConfig` for a single decoding call."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

BENCHMARK_VERSION = 2  # raise it when rows measured before and after must not be compared
PARAMS_FOLDER = Path(__file__).resolve().parent.parent / "params"

CUSTOM_PAIR = "custom"
Positive = Annotated[int, Field(ge=1)]
Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class SamplingConfig:
    """How logits become a distribution; the same for target and draft.

    Args:
        temperature: 0 is greedy, exactly the argmax.
        top_k: keep the k most likely tokens, and those as likely as the last of them; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all.

    Raises:
        ValueError: a value lies outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: give 0 for greedy decoding or a positive number")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: give 0 to keep all tokens or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a number above 0 and at most 1, which keeps all tokens")


class StudyParams(BaseModel):
    """One study on one device. Every params file holds every key; an unknown key is refused.

    The sweep crosses methods, num_draft_tokens and temperatures at the first batch size, prompt length and output
    length; with `design="one-at-a-time"` the further values of those three axes are tried one at a time with
    `headline_num_draft_tokens`, with `design="factorial"` all are crossed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    gpu: str  # the name of the params file and of the folder under outputs/
    device: Literal["cpu", "cuda"]
    device_name: str  # what the device's own name must contain, "" for any
    pair: str  # a preset of specdec_lib.models.pair, or "custom" for the target and draft that follow
    target: str | None  # path or hub id
    target_revision: str | None  # commit on the hub
    draft: str | None
    draft_revision: str | None
    weights: Literal["trained", "random"]  # random: models of the pair's shapes, for latency, memory and energy only
    accepted_per_step: list[Annotated[int, Field(ge=0)]] | None  # with random weights: the acceptance to replay
    dtype: Dtype
    tensor_parallel: Positive  # devices of one host, a process each, that the target is spread over; 1: not spread
    methods: list[Literal["draft", "ngram", "composite"]] = Field(min_length=1)
    num_draft_tokens: list[Positive] = Field(min_length=1)
    headline_num_draft_tokens: Positive
    temperatures: list[Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)]] = Field(min_length=1)
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1, strict=False)]
    batch_sizes: list[Positive] = Field(min_length=1)
    prompt_tokens: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)  # 0: the prompts as they are, ragged
    max_new_tokens: list[Positive] = Field(min_length=1)
    design: Literal["one-at-a-time", "factorial"]
    prompt_set: str
    num_prompts: Positive  # at the headline setting, half as many elsewhere; a batch takes batch_size of them
    compare_transformers: bool  # also time transformers.generate on the headline setting
    repetitions: Positive  # of every cell, at least
    extra_repetitions: Annotated[
        int, Field(ge=0)
    ]  # of a headline cell, at most, while its speedup is less certain than
    interval_width: Annotated[float, Field(gt=0, strict=False)]  # this: a 95 % interval's width, as a share of it
    correctness_samples: Positive  # continuations of each prompt in notebook 01's tests of the pair
    price: str  # a key of hardware/prices.yaml
    seed: Annotated[int, Field(ge=0)]

    @property
    def num_devices(self) -> int:
        """GPUs that a run takes at a time, to be paid for; a CPU is one device, however many processes share it."""
        return self.tensor_parallel if self.device == "cuda" else 1

    @model_validator(mode="after")
    def _custom_pair_has_both(self) -> StudyParams:
        given = (self.target is not None, self.draft is not None)
        if given != ((self.pair == CUSTOM_PAIR),) * 2:
            raise ValueError(f"pair is {self.pair}: give target and draft with pair: {CUSTOM_PAIR}, and only with it")
        return self

    @model_validator(mode="after")
    def _random_weights_replay(self) -> StudyParams:
        if bool(self.accepted_per_step) != (self.weights == "random"):
            raise ValueError(
                f"weights is {self.weights}: give accepted_per_step, such as [2, 0, 4], with weights: random, "
                "and null with weights: trained"
            )
        return self

    @model_validator(mode="after")
    def _toys_are_float32(self) -> StudyParams:
        if self.pair == "toy" and self.dtype != "float32":
            raise ValueError(f"dtype is {self.dtype}: the toy pair computes in float32")
        return self

    @model_validator(mode="after")
    def _values_differ(self) -> StudyParams:
        for name, values in self:
            if name != "accepted_per_step" and isinstance(values, list) and len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}: name each value once")
        return self

    @model_validator(mode="after")
    def _headline_is_swept(self) -> StudyParams:
        if self.headline_num_draft_tokens not in self.num_draft_tokens:
            raise ValueError(
                f"headline_num_draft_tokens is {self.headline_num_draft_tokens}: "
                f"choose one of num_draft_tokens {self.num_draft_tokens}"
            )
        return self


def cache_folder() -> Path:
    """Where models and kernels are kept: `SPECDEC_CACHE`, else `specdec_lib` under the user's cache directory."""
    if chosen := os.environ.get("SPECDEC_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specdec_lib"


def available_params(folder: Path = PARAMS_FOLDER) -> list[str]:
    """The names that `make run GPU=<name>` knows."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_params(name: str, folder: Path = PARAMS_FOLDER) -> StudyParams:
    """Read and check `params/<name>.yaml`.

    Raises:
        ValueError: no such file, a file that is not YAML, or a key that is unknown, missing or out of range; one line
            that names the remedy.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no params file for GPU={name}: choose one of {', '.join(available_params(folder))}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds no keys: copy params/cpu.yaml and edit it")
    params = validate_params(data, source=path.name)
    if params.gpu != name:
        raise ValueError(f"{path.name} says gpu: {params.gpu}: it must be {name}, the name of the file")
    return params


def params_of_run(facts: dict[str, object], source: str) -> StudyParams:
    """The params that a run kept in its `environment.json`; a key that came later has the value that changes nothing.

    Raises:
        ValueError: there are none, or they are not valid; `source` names the file in the error.
    """
    kept = facts.get("params")
    if not isinstance(kept, dict):
        raise ValueError(f"{source} holds no params: run the study again, with make run GPU=<name>")
    later: dict[str, object] = {"weights": "trained", "accepted_per_step": None, "tensor_parallel": 1}
    later |= {"extra_repetitions": 0, "interval_width": 0.1}
    return validate_params(later | kept, source)


def validate_params(data: dict[str, object], source: str) -> StudyParams:
    """Check a dictionary of params; `source` names it in the error."""
    try:
        return StudyParams.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, StudyParams.model_fields, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"remove it; the keys are {', '.join(StudyParams.model_fields)}"
            )
            raise ValueError(f"{source}: unknown key {key}: {hint}") from None
        raise ValueError(f"{source}: {key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}") from None
