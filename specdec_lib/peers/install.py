"""Other engines, and the installation of each into a Python environment of its own in the cache folder."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from specdec_lib.config import cache_folder

FOLDER = Path(__file__).resolve().parent / "engines"

logger = logging.getLogger(__name__)


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
    def environment(self) -> Path:
        """The folder of its environment, which need not exist."""
        return cache_folder() / "peers" / self.name

    @property
    def installed(self) -> bool:
        """Whether the requirement was installed; False after an installation with another pin."""
        marker = self.environment / "installed"
        return marker.exists() and marker.read_text(encoding="utf-8").strip() == self.requirement


def known_engines() -> list[Engine]:
    """The engines that have a file, installed or not."""
    files = sorted(FOLDER.glob("*_engine.py"))
    return [Engine(file, **import_module(f"specdec_lib.peers.engines.{file.stem}").ENGINE) for file in files]


def install_engines() -> dict[str, str]:
    """Install every engine that is not there yet; one that fails does not stop the others. Returns each outcome."""
    return {engine.name: _install(engine) for engine in known_engines()}


def _install(engine: Engine) -> str:
    folder = engine.environment
    if engine.installed:
        return f"installed before, in {folder}"
    logger.warning("installing %s (about %d MB) into %s, once", engine.requirement, engine.megabytes, folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    commands = [[sys.executable, "-m", "venv", str(folder)], [*pip, "install", engine.requirement]]
    if engine.unwanted:
        commands.append([*pip, "uninstall", "--yes", *engine.unwanted])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    (folder / "installed").write_text(engine.requirement + "\n", encoding="utf-8")
    return f"installed in {folder}"
