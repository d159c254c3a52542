"""One set of pins serves venv, conda and CI; params files and make targets keep their promises."""

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

from specdec_lib.config import StudyParams, available_params, load_params

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = {"help", "run", "test", "lint", "lab", "report", "bench-peers", "peers", "draft", "draft-export", "clean"}


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for requirement in requirements:
        (exact,) = requirement.specifier
        assert exact.operator == "==", f"{requirement} is no pin"
        assert requirement.url is None, f"{requirement} names a place"
        versions[canonicalize_name(requirement.name)] = exact.version
    assert len(versions) == len(requirements)
    return versions


def declared() -> list[Requirement]:
    dev = PYPROJECT["dependency-groups"]["dev"]
    build = PYPROJECT["build-system"]["requires"]
    return [Requirement(text) for text in [*PYPROJECT["project"]["dependencies"], *dev, *build]]


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_above_its_floor(requirement: Requirement) -> None:
    version = pins()[canonicalize_name(requirement.name)]
    assert list(requirement.specifier), f"{requirement} has no floor"
    assert requirement.specifier.contains(version)


def test_torch_is_the_tested_version_of_any_build() -> None:
    assert pins()["torch"] == "2.13.0"
    assert not any("+" in version for version in pins().values())


def test_conda_installs_the_same_pins_and_none_of_its_own() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "specdec"
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.txt"]
    others = {entry.partition("=")[0]: entry for entry in environment["dependencies"] if isinstance(entry, str)}
    assert set(others) == {"python", "make", "pip"}
    python = others["python"].partition("=")[2]
    assert python in Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier


@pytest.mark.parametrize("name", ["smoke", "cpu", "a100", "h100", "h200"])
def test_every_params_file_is_valid_and_holds_every_key(name: str) -> None:
    assert load_params(name).gpu == name
    data = yaml.safe_load((ROOT / "params" / f"{name}.yaml").read_text())
    assert list(data) == list(StudyParams.model_fields)


def test_no_params_file_is_forgotten() -> None:
    assert set(available_params()) == {"smoke", "cpu", "a100", "h100", "h200"}


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
