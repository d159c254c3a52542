"""Only a run that is whole replaces what is published, and its headline goes to the README."""

import json
import shutil

import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.machine.step_costs import write_step_costs
from specdec_lib.report import publish
from specdec_lib.report.notebooks import ROOT

PUBLISHED = [path for path in (ROOT / "outputs" / "published").rglob("*") if path.is_file()]
ONE = {"num_draft_tokens": [4], "batch_sizes": [1], "prompt_tokens": [0], "max_new_tokens": [48]}
MARKS = "<!-- headline smoke another -->\nold numbers\n<!-- end of headline -->"


def test_what_is_published_is_small():
    """At most 10 MB together, and each page below 5 MB."""
    sizes = [path.stat().st_size for path in PUBLISHED]
    assert 0 < sum(sizes) < 10e6
    assert max(sizes) < 5e6


def test_the_headline_has_a_line_per_method_with_all_named_studies_and_replaces_what_is_between_the_marks(run):
    params, folder, published = run
    for name, prompts in (("smoke", "mixed"), ("another", "/elsewhere/spec-bench.jsonl")):
        copy = shutil.copytree(folder, published.parent / name, dirs_exist_ok=True)
        facts = {"params": params.model_copy(update={"prompt_set": prompts}).model_dump()}
        (copy / "environment.json").write_text(json.dumps(facts))
    new = publish.with_headline(f"before\n{MARKS}\nafter", published.parent)
    assert "old numbers" not in new
    assert new.startswith("before")
    assert new.endswith("after")
    assert "| method | mixed, T = 0 | mixed, T = 1 | spec-bench, T = 0 | spec-bench, T = 1 |" in new
    assert new.count("| draft model |") == 1
    with pytest.raises(ValueError, match="lacks the marks"):
        publish.with_headline("nothing here", published.parent)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A whole run, what was published before, and a README; its pages are written by a stub."""
    params, folder, published = (
        study(gpu="smoke", **ONE),
        tmp_path / "run",
        tmp_path / "outputs" / "published" / "smoke",
    )
    folder.mkdir()
    published.mkdir(parents=True)
    (published / "before.txt").touch()
    synthetic_rows(params).to_parquet(folder / "results.parquet")
    write_step_costs(folder, [])
    (folder / "environment.json").write_text(json.dumps({"params": params.model_dump()}))
    for name, text in {"calibration.json": "{}", "exactness.json": '{"passed": true}'}.items():
        (folder / name).write_text(text)
    readme = tmp_path / "README.md"
    readme.write_text(MARKS)
    monkeypatch.setattr(publish, "README", readme)
    monkeypatch.setattr(publish, "render_reports", write_page)
    return params, folder, published


def write_page(folder):
    for name in ("notebooks", "reports"):
        (folder / name).mkdir()
    (folder / "index.html").touch()


def test_a_whole_run_takes_the_place_of_what_was_published(run):
    params, folder, published = run
    (folder / "peer_rows.parquet").touch()
    (folder / "cells").mkdir()
    assert publish.publish(params, folder, published) == published
    data = {*publish.NEEDED, "exactness.json", "calibration.json", "peer_rows.parquet"}
    assert {path.name for path in published.iterdir()} == {*data, "index.html", "reports", "speedup.png"}
    assert [path.name for path in published.parent.iterdir() if path.is_dir()] == [published.name]
    assert "| draft model |" in publish.README.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_costs.json": None}, "step_costs.json is missing: run the study to its end"),
        ({"calibration.json": None}, "calibration.json is missing: run the study to its end"),
        ({"exactness.json": None}, r"exactness.json does not pass \(it is missing\)"),
        ({"exactness.json": '{"passed": false, "failures": ["a bias"]}'}, r"\(a bias\): run the study until it passes"),
    ],
)
def test_a_run_that_cannot_be_published_leaves_what_was(run, change, message):
    params, folder, published = run
    for name, text in change.items():
        (folder / name).unlink()
        if text:
            (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        publish.publish(params, folder, published)
    assert [path.name for path in published.iterdir()] == ["before.txt"]
    assert [path.name for path in published.parent.parent.iterdir()] == ["published"]
    assert "old numbers" in publish.README.read_text()


@pytest.mark.parametrize("change", [{"tensor_parallel": 2}, {"weights": "random", "accepted_per_step": [1]}])
def test_a_study_that_makes_no_certificate_is_published_without(run, change):
    params, folder, published = run
    (folder / "exactness.json").unlink()
    if "tensor_parallel" in change:
        (folder / "calibration.json").unlink()
    publish.publish(params.model_copy(update=change), folder, published)
    assert (published / "speedup.png").exists()
