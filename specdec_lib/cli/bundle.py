"""A folder with the code, and the packages that gpu-first needs beyond PyTorch, transformers, SciPy and pandas."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from specdec_lib.params_files import PARAMS_FOLDER

ROOT = PARAMS_FOLDER.parent
PACKAGES = (
    *("annotated-types", "filelock", "lazy-loader", "nvidia-ml-py", "psutil", "pydantic", "pydantic-core", "pyyaml"),
    *("tqdm", "typing-extensions", "typing-inspection"),
)
LEFT_OUT = ("drafts", "distill", "peers", "__pycache__")  # data and code that random weights do not need
PLATFORM = ("--python-version", "3.12", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64",
            "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64")  # fmt: skip
LIMIT_BYTES = 64e6


def pack(folder: Path) -> str:
    """Write the bundle into an empty or new folder, and say how to use it.

    Raises:
        ValueError: the folder holds something.
        RuntimeError: a wheel cannot be had, or the bundle is too large to carry.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something: name an empty or new folder with --to")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "specdec_lib", folder / "specdec_lib", ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(ROOT / "params", folder / "params")
    install(folder / "packages", PLATFORM)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT_BYTES:
        raise RuntimeError(f"{folder} has {size / 1e6:.0f} MB, more than {LIMIT_BYTES / 1e6:.0f}: leave packages out")
    return (
        f"bundle: {folder.resolve()} ({size / 1e6:.0f} MB); there: "
        f"PYTHONPATH={folder.name}/packages:{folder.name} python -m specdec_lib gpu-first --gpu <name>"
    )


def install(folder: Path, platform: tuple[str, ...] = ()) -> None:
    """Install the pinned packages into a folder, by default for this Python."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pins((ROOT / "requirements.txt").read_text(encoding="utf-8")))
        file.flush()
        command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--require-hashes"]
        command += ["--no-deps", "--only-binary", ":all:", *platform, "--target", str(folder), "-r", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the packages cannot be had: {done.stderr.strip().splitlines()[-1]}")


def pins(requirements: str) -> str:
    """The entries of these packages, with their hashes, out of the text of requirements.txt."""
    entries = re.findall(r"^[\w.-]+==(?:.*\\\n)*.*\n", requirements, re.MULTILINE)
    chosen = [entry for entry in entries if entry.partition("==")[0] in PACKAGES]
    assert len(chosen) == len(PACKAGES), "a package of the bundle is not pinned in requirements.txt"
    return "".join(chosen)
