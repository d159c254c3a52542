"""One set of pins serves all environments; each command is a make target."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def test_every_dependency_is_pinned_above_its_floor() -> None:
    versions = pins() | pins("requirements/torch-cuda.txt")
    for requirement in declared():
        assert list(requirement.specifier), f"{requirement} has no floor"
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)


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
