"""One set of pins serves venv, conda and CI; make targets keep their promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from specdec_lib.config import available_params

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = {"help", "run", "test", "lint", "lab", "report", "bench-peers", "peers", "draft", "draft-export", "clean"}
TARGETS |= {"cluster", "audit", "pins", "params"}


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


def test_the_tools_are_pinned_too() -> None:
    assert {"uv", "pip-audit"} <= pins("requirements/tools.txt").keys()


def test_no_file_of_pins_names_a_package_index() -> None:
    for path in [ROOT / "requirements.txt", *(ROOT / "requirements").iterdir()]:
        assert not re.search(r"^\s*-|://", path.read_text().replace("    --hash", ""), flags=re.MULTILINE), path


def test_the_makefile_installs_nothing_unpinned() -> None:
    """The library itself aside, which brings nothing along."""
    commands = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert len(commands) == 2
    assert "--require-hashes --no-deps --only-binary :all:" in commands[0]
    assert commands[1].endswith("--no-deps --no-build-isolation --editable .")


def test_conda_brings_python_and_leaves_the_pins_to_make() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "specdec"
    packages = {entry.partition("=")[0]: entry for entry in environment["dependencies"]}
    assert set(packages) == {"python", "make", "pip"}
    python = packages["python"].partition("=")[2]
    assert python in Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_names_every_target_and_params_file() -> None:
    said = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^  ([a-z-]+) ", said, flags=re.MULTILINE)) >= TARGETS
    assert all(name in said.splitlines()[0] for name in available_params())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_exists(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)


def test_continuous_integration_runs_the_test_command_last() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "make test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
