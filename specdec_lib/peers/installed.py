"""Other engines, each in an environment of its own in the cache folder, in a process that sleeps until it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.machine.own_environment import OwnEnvironment, ServedProcess
from specdec_lib.models.loading.gguf_writing import gguf_of
from specdec_lib.models.pair import Pair
from specdec_lib.peers.ways import Decode, Way, settings
from specdec_lib.study.rows.columns import result_of_arrivals

FOLDER = Path(__file__).resolve().parent / "engines"
LOAD_S, ANSWER_S = 900.0, 300.0  # compiling a model may take minutes


@dataclass(frozen=True)
class Engine:
    """What is known of an engine; see its file in `engines/`."""

    file: Path
    name: str  # in tables, and of its folder
    requirement: str  # what pip installs
    megabytes: int  # about what that takes on disk
    methods: tuple[str, ...]  # ways to decode that it offers, by their names in methods.py
    greedy_only: tuple[str, ...] = ()  # those of them that are compared at temperature 0 only
    weights: Literal["checkpoint", "gguf", "gguf-float16"] = "checkpoint"  # what it reads; gguf: in the study's dtype
    unwanted: tuple[str, ...] = ()  # packages that come with the requirement and are removed again

    @property
    def environment(self) -> OwnEnvironment:
        """Its environment, which need not exist."""
        return OwnEnvironment(self.name, self.requirement, self.megabytes, self.unwanted)

    @property
    def installed(self) -> bool:
        """Whether the requirement was installed; False after an installation with another pin."""
        return self.environment.installed


def known_engines() -> list[Engine]:
    """The engines that have a file, installed or not."""
    files = sorted(FOLDER.glob("*_engine.py"))
    return [Engine(file, **import_module(f"specdec_lib.peers.engines.{file.stem}").ENGINE) for file in files]


def install_engines() -> dict[str, str]:
    """Install every engine that is not there yet; one that fails does not stop the others. Returns each outcome."""
    return {engine.name: engine.environment.install() for engine in known_engines()}


def installed_ways(
    plain: Pair, target: str, draft: str, gammas: Sequence[int], context: int, stack: ExitStack
) -> list[Way]:
    """Every installed engine with every method that it offers, loaded here and ended by `stack`.

    An engine that cannot load is a way that fails.

    Args:
        target, draft: folders of the checkpoints, or hub ids.
        context: the most tokens of prompt and output together.
    """
    ways, dtype = [], plain.target.dtype
    facts = {"dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads(), "context": context}
    for engine in (engine for engine in known_engines() if engine.installed):
        for method, draft_id, gamma in settings(engine.methods, plain.draft_id, gammas):
            print(f"loading {engine.name} {method}", flush=True)
            decode: Decode
            try:
                models = {"target": readable(engine, target, dtype), "draft": readable(engine, draft, dtype)}
                load = {**facts, **models, "method": method, "num_draft_tokens": gamma}
                process = stack.enter_context(EngineProcess(engine, load))
                version, decode = process.version, process.decode
            except (RuntimeError, ValueError) as error:
                version, decode = "unknown", partial(_fail, str(error))
            greedy_only = method in engine.greedy_only
            ways.append(Way(engine.name, version, plain.name, method, draft_id, gamma, decode, greedy_only))
    return ways


def readable(engine: Engine, checkpoint: str, dtype: torch.dtype) -> str:
    """A checkpoint as the engine reads it: the same weights, converted where it reads no safetensors."""
    if engine.weights == "checkpoint":
        return checkpoint
    models = engine.environment.folder.parent / f"{engine.name}-models"
    return str(gguf_of(Path(checkpoint), models, torch.float16 if engine.weights == "gguf-float16" else dtype))


def _fail(reason: str, *_: object) -> DecodeResult:
    raise RuntimeError(reason)


class EngineProcess(ServedProcess):
    """An engine, loaded with `settings`. RuntimeError if it could not load."""

    def __init__(self, engine: Engine, settings: Mapping[str, Any]):
        models = engine.environment.folder.parent
        log = models / f"{engine.name}-{settings['method']}-{settings['num_draft_tokens'] or 0}.log"
        own = {"VLLM_CACHE_ROOT": str(models / "vllm-cache"), "OMP_NUM_THREADS": str(settings["threads"])}
        python = engine.environment.python
        super().__init__(python, engine.file, settings, log, load_s=LOAD_S, environ=own, timed=True)

    def decode(self, prompt: torch.Tensor, new_tokens: int, sampling: SamplingConfig, seed: int) -> DecodeResult:
        """Decode one prompt `[n]`; RuntimeError if it answers with an error, dies, or takes too long and is killed."""
        answer = self.ask(
            {"prompt": prompt.tolist(), "new_tokens": new_tokens, "seed": seed} | vars(sampling), ANSWER_S
        )
        arrivals = [(float(seconds), int(count)) for seconds, count in answer["arrivals"]]
        return result_of_arrivals([torch.tensor(answer["tokens"])], arrivals)
