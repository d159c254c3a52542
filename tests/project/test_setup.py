"""One set of pins serves all environments; each command is a make target."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from specdec_lib.__main__ import COMMANDS
from specdec_lib.config import available_params

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(name: str = "requirements.txt") -> dict[str, str]:
    """What a file of pins installs on this interpreter: canonical name to version; every one has hashes."""
    entries = (ROOT / name).read_text().replace("\\\n", "").splitlines()
    versions: dict[str, str] = {}
    for entry in [entry for entry in entries if entry and not entry.startswith("#")]:
        text, *hashes = entry.split("--hash=")
        assert hashes, f"{text} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", value) for value in hashes), text
        requirement = Requirement(text)
        (exact,) = requirement.specifier
        assert exact.operator == "==", f"{requirement} is no pin"
        assert requirement.url is None, f"{requirement} names a place"
        if requirement.marker is None or requirement.marker.evaluate():
            assert versions.setdefault(canonicalize_name(requirement.name), exact.version) == exact.version
    return versions


def declared() -> list[Requirement]:
    dev = PYPROJECT["dependency-groups"]["dev"]
    build = PYPROJECT["build-system"]["requires"]
    return [Requirement(text) for text in [*PYPROJECT["project"]["dependencies"], *dev, *build]]


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_above_its_floor(requirement: Requirement) -> None:
    versions = pins() | pins("requirements/torch-cuda.txt")
    assert list(requirement.specifier), f"{requirement} has no floor"
    assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_both_builds_of_torch_are_the_tested_version_and_stand_apart_from_the_other_pins() -> None:
    assert (ROOT / "requirements" / "torch.in").read_text() == "torch==2.13.0\n"
    assert pins("requirements/torch-cuda.txt")["torch"] == "2.13.0"
    assert pins("requirements/torch-cpu.txt") == {"torch": "2.13.0+cpu"}
    assert not {name for name in pins() if name.startswith(("nvidia-", "cuda-", "torch", "triton"))} - {"nvidia-ml-py"}


def test_ray_is_pinned_where_it_is_declared_and_installed_only_on_demand() -> None:
    assert PYPROJECT["project"]["optional-dependencies"]["cluster"] == [
        f"ray=={pins('requirements/cluster.txt')['ray']}"
    ]
    assert not pins("requirements/cluster.txt").keys() & pins().keys()


def test_no_file_of_pins_names_a_package_index() -> None:
    for path in [ROOT / "requirements.txt", *(ROOT / "requirements").iterdir()]:
        assert not re.search(r"^\s*-|://", path.read_text().replace("    --hash", ""), flags=re.MULTILINE), path


def test_the_makefile_installs_nothing_unpinned() -> None:
    """The library itself aside, which brings nothing along."""
    commands = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert len(commands) == 2
    assert "--require-hashes --no-deps --only-binary :all:" in commands[0]
    assert commands[1].endswith("--no-deps --no-build-isolation --editable .")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_names_every_target_and_every_command_is_a_target() -> None:
    said = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^  ([a-z-]+) ", said, flags=re.MULTILINE))
    assert targets == set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {command.name for command in COMMANDS} <= targets
    assert all(name in said.splitlines()[0] for name in available_params())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("asked", "called"),
    [
        (["run", "GPU=h100", "SET=batch_sizes=[1,8] seed=1"], 'run --gpu "$GPU" --set "$SET"'),
        (["compare"], "compare"),
        (["compare", "GPU=cpu h100"], "compare --gpu cpu h100"),
        (["rerun", "CELL=0123"], 'rerun "$CELL"'),
        (["rerun", "CELL=0123", "GPU=cpu"], 'rerun "$CELL" --gpu "$GPU"'),
    ],
)
def test_a_target_is_a_thin_call_of_its_command(asked: list[str], called: str) -> None:
    """What a user gives goes through the environment, so that spaces and brackets stay as they are."""
    said = subprocess.run(["make", "--dry-run", *asked], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1].split(" -m specdec_lib ")[1].strip() == called
