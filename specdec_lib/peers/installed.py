"""Installed engines as ways to decode: each in a process of its own, which sleeps until it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.models.pair import Pair
from specdec_lib.peers.gguf import gguf_of
from specdec_lib.peers.install import FOLDER, Engine, known_engines
from specdec_lib.peers.ways import Decode, Way, settings
from specdec_lib.study.columns import result_of_arrivals

LOAD_S, ANSWER_S = 900.0, 300.0  # compiling a model may take minutes


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
    models = engine.environment.parent / f"{engine.name}-models"
    return str(gguf_of(Path(checkpoint), models, torch.float16 if engine.weights == "gguf-float16" else dtype))


def _fail(reason: str, *_: object) -> DecodeResult:
    raise RuntimeError(reason)


class EngineProcess:
    """A loaded engine; the other side is `engines/serve.py`.

    Args:
        settings: the arguments of the engine's `load`.

    Raises:
        RuntimeError: the engine could not load; with its reason.
    """

    def __init__(self, engine: Engine, settings: Mapping[str, Any]):
        home = engine.environment
        self.log = home.parent / f"{engine.name}-{settings['method']}-{settings['num_draft_tokens'] or 0}.log"
        own = {"VLLM_CACHE_ROOT": str(home.parent / "vllm-cache"), "OMP_NUM_THREADS": str(settings["threads"])}
        with self.log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [str(home / "bin" / "python"), str(FOLDER / "serve.py"), str(engine.file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                env=os.environ | own,
            )
        try:
            self.version = str(self._ask(settings, LOAD_S)["version"])
        except RuntimeError:
            self.__exit__()
            raise

    def decode(self, prompt: torch.Tensor, new_tokens: int, sampling: SamplingConfig, seed: int) -> DecodeResult:
        """Decode one prompt `[n]`; see `ways.Way`.

        Raises:
            RuntimeError: the engine answered with an error, died, or took too long and was killed.
        """
        answer = self._ask(
            {"prompt": prompt.tolist(), "new_tokens": new_tokens, "seed": seed} | vars(sampling), ANSWER_S
        )
        arrivals = [(float(seconds), int(count)) for seconds, count in answer["arrivals"]]
        return result_of_arrivals([torch.tensor(answer["tokens"])], arrivals)

    def _ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one message and wait for its answer."""
        assert self.process.stdin
        assert self.process.stdout
        timer = threading.Timer(timeout_s, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise RuntimeError(f"its process ended without an answer; see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):  # by what a dead process never read
                if pipe:
                    pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
