"""The Makefile's environment and build of torch, with an interpreter that only notes what it is asked to install."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specdec_lib.__main__ import COMMANDS
from specdec_lib.params_files import available_params

ROOT = Path(__file__).resolve().parents[2]
MAKE = shutil.which("make")
PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then PYTHONPATH=metadata exec "{real}" -S "$@"; fi
echo "$@" >> asked
"""
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("CONDA_", "MAKE", "MFLAGS", "TORCH")) and name not in ("GPU", "SET", "CELL", "CLUSTER")
}

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


@pytest.fixture(params=["checkout", "a b"])
def checkout(request, tmp_path):
    """A copy of what make reads, with an environment whose torch is the build without CUDA."""
    folder = tmp_path / request.param
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    (folder / ".venv" / "bin" / "python").write_text(PYTHON.format(real=sys.executable))
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    set_build(folder, "+cpu")
    return folder


def set_build(folder, build):
    """Let this build be the one that is installed."""
    shutil.rmtree(folder / "metadata", ignore_errors=True)
    version = (ROOT / "requirements" / "torch.in").read_text().strip().removeprefix("torch==") + build
    facts = folder / "metadata" / f"torch-{version}.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True)
    facts.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")


def installs(folder, *arguments):
    """The files of pins that `make ARGUMENTS` installs."""
    (folder / "asked").unlink(missing_ok=True)
    subprocess.run([MAKE, *arguments], cwd=folder, env=CLEAN, capture_output=True, text=True, check=True)
    asked = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []
    return [line.split(" -r ")[1] for line in asked if " -r " in line]


def test_the_build_that_is_there_is_kept_unless_another_is_asked_for(checkout):
    assert installs(checkout) == ["requirements.txt"]
    assert installs(checkout) == []
    assert installs(checkout, "TORCH=cuda") == ["requirements.txt", "requirements/torch-cuda.txt"]
    set_build(checkout, "")
    assert installs(checkout, "TORCH=cuda") == installs(checkout) == []
    assert installs(checkout, "TORCH=cpu") == ["requirements.txt", "requirements/torch-cpu.txt"]
    set_build(checkout, "+cpu")
    assert installs(checkout, "TORCH=cuda") == ["requirements.txt", "requirements/torch-cuda.txt"], "back again"


def test_an_asked_build_that_is_there_already_is_not_installed_anew(checkout):
    assert installs(checkout, "TORCH=cpu") == ["requirements.txt"]


def test_triton_is_installed_with_the_pin_of_the_build_with_cuda(checkout):
    assert installs(checkout, "triton")[-1] == ".venv/.specdec-triton.txt"
    pin, *hashes = (checkout / ".venv" / ".specdec-triton.txt").read_text().splitlines()
    assert pin.startswith("triton==")
    assert hashes
    assert all("--hash=sha256:" in line for line in hashes)


def test_no_environment_is_made_outside_a_checkout_with_a_space_in_its_path(checkout):
    shutil.rmtree(checkout / ".venv")
    said = subprocess.run(
        [MAKE, "--dry-run"], cwd=checkout, env=CLEAN, capture_output=True, text=True, check=True
    ).stdout
    assert "python3 -m venv .venv\n" in said
    assert str(checkout.parent) not in said


def test_a_conda_environment_with_a_space_in_its_path_is_refused(checkout):
    conda = {"CONDA_DEFAULT_ENV": "specdec", "CONDA_PREFIX": "/home/me/my envs/specdec"}
    done = subprocess.run([MAKE], cwd=checkout, env=CLEAN | conda, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "the conda environment /home/me/my envs/specdec has a space in its path" in done.stderr


def test_make_help_names_every_target_and_every_command_is_a_target() -> None:
    said = subprocess.run(
        [MAKE, "--no-print-directory", "help"], cwd=ROOT, env=CLEAN, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^  ([a-z-]+) ", said, flags=re.MULTILINE))
    assert targets == set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {command.name for command in COMMANDS} <= targets
    assert all(name in said.splitlines()[0] for name in available_params())


@pytest.mark.parametrize(
    ("asked", "called"),
    [
        (["run", "GPU=h100", "SET=batch_sizes=[1,8] seed=1"], 'run --gpu "$GPU" --set "$SET"'),
        (["compare"], "compare"),
        (["compare", "GPU=cpu h100"], "compare --gpu cpu h100"),
        (["rerun", "CELL=0123", "GPU=cpu"], 'rerun "$CELL" --gpu "$GPU"'),
    ],
)
def test_a_target_is_a_thin_call_of_its_command(asked: list[str], called: str) -> None:
    """What a user gives goes through the environment, so that spaces and brackets stay as they are."""
    said = subprocess.run(
        [MAKE, "--no-print-directory", "--dry-run", *asked],
        cwd=ROOT,
        env=CLEAN,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.splitlines()[-1].split(" -m specdec_lib ")[1].strip() == called
