"""Weights: safetensors only, no code from a hub, every file's SHA-256 recorded and compared with what is known."""

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from checkpoints import write_checkpoint

import specdec_lib
from specdec_lib.models import pair
from specdec_lib.models.loading import weights
from specdec_lib.models.loading.presets import HEAD_PRESETS, PRESETS, checkpoints_of
from specdec_lib.models.loading.weights import fetch_weights, sha256, weight_files
from specdec_lib.models.pair import load_pair

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOADS = r"(partial\()?[\w.]+\.from_pretrained\b"  # called, or kept to be called
SOURCES = sorted(Path(specdec_lib.__file__).parent.rglob("*.py"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache that holds acme/tiny, as huggingface_hub lays it out: files named by their SHA-256, and links."""
    write_checkpoint(tmp_path / "plain")
    repository = tmp_path / "models--acme--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in (tmp_path / "plain").iterdir():
        blob = path.rename(repository / "blobs" / sha256(path))
        (snapshot / path.name).symlink_to(blob)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_files_of_a_hub_are_recorded_with_their_commit_and_hash(hub):
    loaded = load_pair(target="acme/tiny", draft="acme/tiny", target_revision=COMMIT, draft_revision=COMMIT)
    assert loaded.files == {f"acme/tiny@{COMMIT}/model.safetensors": sha256(hub / "model.safetensors")}


def test_a_flipped_bit_in_the_hubs_cache_is_refused(hub):
    """Its header is sound and its size right, so that nothing but the hash tells."""
    flip_a_bit((hub / "model.safetensors").resolve())
    with pytest.raises(ValueError, match=r"has changed since it was fetched: delete .* and run again") as refusal:
        load_pair(target="acme/tiny", draft="acme/tiny", target_revision=COMMIT, draft_revision=COMMIT)
    assert "\n" not in str(refusal.value)


def test_a_sound_file_that_is_not_the_pinned_one_is_refused(hub, monkeypatch):
    monkeypatch.setattr(pair, "known_weights", lambda where, commit: {"model.safetensors": "0" * 64})
    with pytest.raises(ValueError, match="is not the file that this study is pinned to"):
        load_pair(target="acme/tiny", draft="acme/tiny", target_revision=COMMIT, draft_revision=COMMIT)


@pytest.mark.parametrize("cached", [True, False])
def test_rows_of_a_hub_are_compared_with_the_vocabulary_before_weights_are_fetched(cached, hub, monkeypatch):
    """By the headers of the files: of those in the cache, or the hub tells them alone."""
    small = hub / "config.json"
    small.write_text(json.dumps(json.loads(small.read_text()) | {"vocab_size": 41}))
    if not cached:
        (hub / "model.safetensors").unlink()
    tensors = {"model.embed_tokens.weight": SimpleNamespace(shape=[40, 16])}
    told = SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})
    monkeypatch.setattr(weights, "get_safetensors_metadata", lambda where, revision: told)
    monkeypatch.setattr(pair, "fetch_weights", lambda *_: pytest.fail("weights were fetched"))
    with pytest.raises(ValueError, match=r"vocab_size is 41 in its config.json, but model.embed_tokens.weight has 40"):
        load_pair(target="acme/tiny", draft="acme/tiny", target_revision=COMMIT, draft_revision=COMMIT)


def test_a_commit_that_is_not_there_is_one_line(hub):
    with pytest.raises(ValueError, match=r"cannot load acme/tiny: .* - check the path or hub id") as refusal:
        load_pair(target="acme/tiny", draft="acme/tiny", target_revision="f" * 40, draft_revision=COMMIT)
    assert "\n" not in str(refusal.value)


def test_a_folder_of_ones_own_is_recorded(tmp_path):
    where = write_checkpoint(tmp_path / "mine")
    assert weight_files(where, fetch_weights(where, None)) == {
        "mine/model.safetensors": sha256(tmp_path / "mine" / "model.safetensors")
    }


def test_every_preset_is_pinned_to_commits():
    """Where a source gives the commit; the others are read at the newest, which a run writes down."""
    unpinned = set()
    for name in (*PRESETS, *HEAD_PRESETS):
        for where, revision in checkpoints_of(name, None, None):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", where), name
            unpinned |= {where} if revision is None else set()
            assert revision is None or re.fullmatch("[0-9a-f]{40}", revision), name
    assert unpinned == {"zai-org/GLM-4-32B-0414"}


def loading_calls():
    """Every call in the library that loads a model, configuration or tokenizer, with its file."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.match(LOADS, ast.unparse(node)):
                yield path, ast.unparse(node)


def test_no_code_of_a_hub_is_ever_run():
    found = [(path, call) for path, call in loading_calls() if "Embedding" not in call]
    assert len(found) >= 5
    for path, call in found:
        assert "trust_remote_code=False" in call, f"{path}: {call}"


@pytest.mark.parametrize("name", ["pickle", "torch.load", "joblib", "read_pickle", "allow_pickle"])
def test_nothing_is_unpickled(name):
    """But for the heads that authors publish as .bin, through torch's restricted reader, which runs no code."""
    for path in SOURCES:
        restricted = path.match("published/files.py") and "weights_only=True" in path.read_text()
        assert restricted or not re.search(rf"\b{re.escape(name)}\b", path.read_text()), path
