"""What a study consists of: settings to compare methods in, and their cells, in blocks that are run interleaved."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from specdec_lib.config import BENCHMARK_VERSION, INT8, SamplingConfig, StudyParams
from specdec_lib.methods import AUTOREGRESSIVE, FIXED_LENGTH
from specdec_lib.study.run_folder import read_cell, whole_runs

T = TypeVar("T")

NATURAL_PROMPT = 128  # tokens that stand for prompts as they are: about the mean of the set "mixed"
FIXED, NATURAL = "fixed", "natural"  # where a text stops; see `StudyParams.stop`
GIVEN = "given"  # the `verification` of cells whose acceptance is replayed


@dataclass(frozen=True)
class Setting:
    """Everything but the method: cells of one setting and prompt group are interleaved and paired."""

    temperature: float
    batch_size: int
    prompt_tokens: int | None  # None: the prompts as they are
    max_new_tokens: int
    num_draft_tokens: tuple[int, ...]
    headline: bool  # the first value of every axis

    def __str__(self) -> str:
        prompt = "natural prompts" if self.prompt_tokens is None else f"{self.prompt_tokens} prompt tokens"
        return f"T={self.temperature:g}, batch {self.batch_size}, {prompt}, {self.max_new_tokens} new tokens"


@dataclass(frozen=True)
class Source:
    """What else decides a cell's numbers: device, models and prompts."""

    gpu: str
    device_name: str
    pair: str
    target_id: str
    draft_id: str
    weights: str  # hash of the hashes of weight files, and of the config.json next to them
    software: str  # versions of what computes
    dtype: str
    threads: int  # of the CPU
    prompt_set: str
    prompt_set_hash: str


@dataclass(frozen=True)
class Cell:
    """One point of the sweep. Its id is a hash of everything that determines it.

    Attributes:
        num_draft_tokens, verification, draft_length: None for the baseline.
        accepted_per_step: acceptance to replay instead of finding it; None with trained weights.
    """

    source: Source
    engine: str
    method: str
    verification: str | None
    draft_length: str | None
    num_draft_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    batch_size: int
    prompt_tokens: int | None
    max_new_tokens: int
    stop: str
    prompt_group: int
    repetitions: int
    seed: int
    accepted_per_step: tuple[int, ...] | None = None
    benchmark_version: int = BENCHMARK_VERSION

    @cached_property
    def id(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.temperature, self.top_k, self.top_p)

    def repetition_seed(self, repetition: int) -> int:
        """The seed of one repetition: from the cell's id, so that it can be run again alone."""
        return int(hashlib.sha256(f"{self.id}-{repetition}".encode()).hexdigest()[:8], 16)

    def __str__(self) -> str:
        gamma = f" gamma={self.num_draft_tokens}" if self.num_draft_tokens else ""
        gamma += f" {self.draft_length}" if self.draft_length not in (None, FIXED_LENGTH) else ""
        gamma += f" {self.verification}" if self.verification not in (None, "token", GIVEN) else ""
        prompt = "natural" if self.prompt_tokens is None else self.prompt_tokens
        return (
            f"{self.engine} {self.method}{gamma} T={self.temperature:g} batch={self.batch_size} "
            f"prompt={prompt} new={self.max_new_tokens} group={self.prompt_group}"
        )


def settings(params: StudyParams) -> list[Setting]:
    """The settings of a study, the headline's first; see `StudyParams` for the two designs."""
    batches, outputs = params.batch_sizes, params.max_new_tokens
    prompts = [n or None for n in params.prompt_tokens]
    base = (batches[0], prompts[0], outputs[0])
    if params.design == "factorial":
        points = list(itertools.product(batches, prompts, outputs))
    else:
        points = [base]
        points += [(batch, *base[1:]) for batch in batches[1:]]
        points += [(base[0], prompt, base[2]) for prompt in prompts[1:]]
        points += [(*base[:2], output) for output in outputs[1:]]
    every, headline = tuple(params.num_draft_tokens), (params.headline_num_draft_tokens,)
    gammas = [every if point == base or params.design == "factorial" else headline for point in points]
    return [
        Setting(temperature, *point, num_draft_tokens=gamma, headline=point == base)
        for point, gamma in zip(points, gammas, strict=True)
        for temperature in params.temperatures
    ]


def prompt_groups(params: StudyParams, setting: Setting) -> list[list[int]]:
    """Numbers of the prompts of each group: `num_prompts` at the headline setting, else `num_axis_prompts`."""
    size = setting.batch_size
    count = max(-(-params.num_prompts // size), 2) if setting.headline else _axis_groups(params, size)
    return [[group * size + row for row in range(size)] for group in range(count)]


def _axis_groups(params: StudyParams, batch_size: int) -> int:
    """How many groups decode with more than the headline's gamma; two at least."""
    return max(-(-min(params.num_axis_prompts, params.num_prompts) // batch_size), 2)


def block(params: StudyParams, source: Source, setting: Setting, prompt_group: int) -> list[Cell]:
    """The cells that are run interleaved: the baseline first, then every speculative one."""
    on_axis = prompt_group < _axis_groups(params, setting.batch_size)
    gammas = setting.num_draft_tokens if on_axis else (params.headline_num_draft_tokens,)
    given = tuple(params.accepted_per_step) if params.accepted_per_step else None
    ways = (
        _ways(params, setting) if setting.headline and on_axis else [(params.verification[0], params.draft_length[0])]
    )
    variants: list[tuple[str, str, str | None, str | None, int | None]]
    variants = [("specdec_lib", AUTOREGRESSIVE, None, None, None)]
    variants += [
        ("specdec_lib", method, GIVEN if given else rule, length, gamma)
        for method, (rule, length), gamma in itertools.product(params.methods, ways, gammas)
    ]
    if setting.headline and on_axis and params.compare_transformers and params.stop == FIXED and params.dtype != INT8:
        variants.append(("transformers", AUTOREGRESSIVE, None, None, None))
    same = {name: getattr(params, name) for name in ("top_k", "top_p", "stop", "repetitions", "seed")}
    same |= {name: getattr(setting, name) for name in ("temperature", "batch_size", "prompt_tokens", "max_new_tokens")}
    return [
        Cell(
            source=source,
            engine=engine,
            method=method,
            verification=rule,
            draft_length=length,
            num_draft_tokens=gamma,
            prompt_group=prompt_group,
            accepted_per_step=None if gamma is None else given,
            **same,
        )
        for engine, method, rule, length, gamma in variants
    ]


def _ways(params: StudyParams, setting: Setting) -> list[tuple[str, str]]:
    """Rule and draft length of the headline setting's cells: the first of both, and every other one with the first.

    Rules differ in how they use chance, and greedy decoding has none. A given acceptance needs no rule.
    """
    chance = setting.temperature > 0 and not params.accepted_per_step
    others = params.verification[1:] if chance else []
    lengths = [(params.verification[0], length) for length in params.draft_length]
    return lengths + [(rule, params.draft_length[0]) for rule in others]


@dataclass(frozen=True)
class Block:
    """The cells of one setting and prompt group, the baseline first.

    Attributes:
        prompts: their numbers; see `prompt_groups`.
    """

    setting: Setting
    prompts: list[int]
    cells: list[Cell]

    def missing(self, folder: Path) -> list[Cell]:
        """The cells that `folder` does not hold yet. A cell counts only with its baseline of the same run.

        Ratios are taken within one run. So a cell whose baseline died with its process is measured again.
        """
        rows = {cell: read_cell(folder, cell.id) for cell in self.cells}
        runs = {cell: {row["run_id"] for row in whole_runs(rows[cell])} for cell in self.cells}
        failed = {cell for cell in self.cells if any(row["status"] != "ok" for row in rows[cell])}
        return [cell for cell in self.cells if cell in failed or not runs[cell] & runs[self.cells[0]]]


def plan(params: StudyParams, source: Source) -> list[Block]:
    """All blocks of a study; a block's number is its place in this list."""
    return [
        Block(setting, prompts, block(params, source, setting, group)) for setting, group, prompts in _places(params)
    ]


def num_blocks(params: StudyParams) -> int:
    """How many blocks a study has, on any device."""
    return len(_places(params))


def first_blocks(params: StudyParams) -> list[int]:
    """Numbers of the blocks from which a first headline can be read within minutes: few cells, and few prompts.

    They are the last `num_axis_prompts` of the headline setting, which decode with the headline's gamma alone; none
    where the axes take more than half of its prompts.
    """
    few = _axis_groups(params, params.batch_sizes[0])
    headline = [(number, group) for number, (setting, group, _) in enumerate(_places(params)) if setting.headline]
    last = 1 + max(group for _, group in headline)
    return [number for number, group in headline if group >= last - few] if last >= 2 * few else []


def _places(params: StudyParams) -> list[tuple[Setting, int, list[int]]]:
    """Setting, number of the prompt group and its prompts, for each block."""
    return [
        (setting, group, prompts)
        for setting in settings(params)
        for group, prompts in enumerate(prompt_groups(params, setting))
    ]


def spread_evenly(sequences: Iterable[Sequence[T]]) -> list[T]:
    """Merge sequences: each keeps its order and is spread over the whole."""
    places = [((number + 0.5) / len(each), item) for each in sequences for number, item in enumerate(each)]
    return [item for _, item in sorted(places, key=lambda place: place[0])]
