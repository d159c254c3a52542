"""What the league knows of an engine, its ways to decode and the lines of the table that come of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from specdec_lib.config import SamplingConfig
from specdec_lib.exactness import subjects
from specdec_lib.machine.own_environment import OwnEnvironment

FOLDER = Path(subjects.__file__).parent
T1 = SamplingConfig()
COOL = SamplingConfig(temperature=0.7)
COOL_TOP_K = SamplingConfig(temperature=0.7, top_k=3)
TOP_P = SamplingConfig(top_p=0.8)
BY_GAMMA = {0: (T1, COOL_TOP_K, TOP_P), 1: (T1,), 2: (T1, COOL_TOP_K, TOP_P), 4: (COOL,)}  # what is tested at each
GAMMAS = (1, 2, 4)
GREEDY_GAMMA = 4  # longest drafts mix the most positions in one pass


@dataclass(frozen=True)
class Way:
    """A way in which an engine decodes: what it drafts with, its rule, and how it was set."""

    method: str  # what drafts, in the engine's words; `none` for its own baseline
    rule: str = "token"  # token, block, exact match, ...: what decides which draft tokens stay
    setting: str = "default"  # or what the manual recommends for losslessness, in a few words
    manual: str = ""  # what the manual says of losslessness, quoted briefly, with its page
    gammas: tuple[int, ...] = GAMMAS  # (0,) without drafts
    samplings: tuple[tuple[float, int, float], ...] | None = None  # (temperature, top_k, top_p); None: see `BY_GAMMA`.
    # A way that decodes greedily only has one line at temperature 0
    greedy: bool = True  # whether its greedy texts are compared
    own_model: bool = False  # whether its target is one of its own, whose `logits` it gives
    untestable: str = ""  # why it cannot be tested here, if it cannot
    report: str = ""  # a public report of a bias of this way, such as huggingface/transformers#47932
    options: dict[str, Any] = field(default_factory=dict)  # for `load` alone

    @property
    def name(self) -> str:
        """Tells the ways of a subject apart."""
        return f"{self.method}, {self.rule}, {self.setting}"


@dataclass(frozen=True)
class Subject:
    """An engine of one version; see the file of it in `exactness/subjects/`."""

    file: Path
    name: str
    ways: tuple[Way, ...]
    requirement: str = ""  # what pip installs into an environment of its own; empty: it runs in ours
    environment: str = ""  # the environment's name, if not the subject's: engines of peers have theirs already
    megabytes: int = 0  # about what the requirement takes on disk
    unwanted: tuple[str, ...] = ()  # packages that come with the requirement and are removed again
    sees_ours: bool = False  # whether the environment finds our packages, PyTorch among them, where it has none itself
    reads: Literal["checkpoint", "gguf", "gguf-float16"] = "checkpoint"
    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # that it computes in; sampling is tested in the first
    reloads: bool = False  # whether one process can load one way after another, which saves the import of the engine
    environ: dict[str, str] = field(default_factory=dict)  # variables of its process
    kind: Literal["engine", "twin"] = "engine"  # a twin has a known bug each, and must be caught
    absent: str = ""  # why it cannot be installed here, if it cannot: then nothing of it is run

    @property
    def own_environment(self) -> OwnEnvironment | None:
        """None if it runs in ours."""
        if not self.requirement:
            return None
        name = self.environment or self.name.replace(" ", "-")
        return OwnEnvironment(name, self.requirement, self.megabytes, self.unwanted, self.sees_ours)

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return self.own_environment.python if self.own_environment else Path(sys.executable)


@dataclass(frozen=True)
class Line:
    """A line of the table: a way of a subject, at a draft length, with these filters."""

    subject: Subject
    way: Way
    num_draft_tokens: int
    sampling: SamplingConfig

    @property
    def name(self) -> str:
        """Tells all lines apart."""
        s = self.sampling
        drafts = f", gamma {self.num_draft_tokens}" if self.num_draft_tokens else ""
        return (
            f"{self.subject.name}, {self.way.name}{drafts}, T = {s.temperature:g}, top-k {s.top_k}, top-p {s.top_p:g}"
        )

    @property
    def length(self) -> int:
        """New tokens of a sample: room for a whole draft, its bonus token and one more."""
        return max(self.num_draft_tokens, 2) + 2


def known_subjects() -> list[Subject]:
    """The subjects that have a file, installed or not, in the order of files."""
    found = []
    for file in sorted(FOLDER.glob("*_subject.py")):
        for entry in import_module(f"{subjects.__name__}.{file.stem}").SUBJECTS:
            ways = tuple(Way(**way) for way in entry["ways"])
            found.append(Subject(file, **entry | {"ways": ways}))
    return found


def lines_of(subject: Subject) -> Iterator[Line]:
    """The lines of a subject, those of the same load next to each other."""
    for way in subject.ways:
        for gamma in way.gammas:
            chosen = BY_GAMMA[gamma] if way.samplings is None else [SamplingConfig(*each) for each in way.samplings]
            for sampling in chosen:
                yield Line(subject, way, gamma, sampling)
