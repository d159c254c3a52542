"""Python environments of other engines, one each in the cache folder, and processes in them that answer over a pipe."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from specdec_lib.config import cache_folder

SERVE = Path(__file__).with_name("serve.py")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnEnvironment:
    """An environment that pip fills with one requirement; see `Engine` of peers and `Subject` of the league."""

    name: str  # of its folder
    requirement: str  # what pip installs: one or several, separated by spaces
    megabytes: int  # about what that takes on disk
    unwanted: tuple[str, ...] = ()  # packages that come with the requirement and are removed again
    sees_ours: bool = False  # whether our own packages are found where it has none; then no others are fetched

    @property
    def folder(self) -> Path:
        """Its folder, which need not exist."""
        return cache_folder() / "peers" / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether the requirement was installed; False after an installation with another pin."""
        marker = self.folder / "installed"
        return marker.exists() and marker.read_text(encoding="utf-8").strip() == self.requirement

    def install(self) -> str:
        """Install it unless it is there. Returns the outcome; `failed: ` and the reason if it could not."""
        if self.installed:
            return f"installed before, in {self.folder}"
        logger.warning("installing %s (about %d MB) into %s, once", self.requirement, self.megabytes, self.folder)
        pip = [str(self.python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        dependencies = ["--no-deps"] if self.sees_ours else []
        commands = [
            [sys.executable, "-m", "venv", str(self.folder)],
            [*pip, "install", *dependencies, *self.requirement.split()],
        ]
        if self.unwanted:
            commands.append([*pip, "uninstall", "--yes", *self.unwanted])
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        if self.sees_ours:
            for packages in self.folder.glob("lib/python*/site-packages"):
                (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        (self.folder / "installed").write_text(self.requirement + "\n", encoding="utf-8")
        return f"installed in {self.folder}"


class ServedProcess:
    """A process that serves `file` to us; the other side is `serve.py`. RuntimeError if it could not load.

    Args:
        settings: the arguments of the file's `load`.
        log: where its standard error goes.
        timed: whether it serves a decoding function whose tokens are timed.
    """

    def __init__(
        self,
        python: Path,
        file: Path,
        settings: Mapping[str, Any],
        log: Path,
        *,
        load_s: float,
        environ: Mapping[str, str],
        timed: bool = False,
    ):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [str(python), str(SERVE), str(file), *["timed"] * timed],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                env=os.environ | environ,
            )
        try:
            self.load(settings, load_s)
        except BaseException:
            self.__exit__()
            raise

    def load(self, settings: Mapping[str, Any], load_s: float) -> None:
        """Load, or load something else in place of what was; errors as of `ask`."""
        self.version = str(self.ask({**settings, "call": "load"}, load_s)["version"])

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one message and wait for its answer; RuntimeError if that is an error, or none came in time."""
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
