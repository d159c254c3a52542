"""The README's numbers are those of the committed table, and only a run that is whole replaces what is published."""

import json

import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.config import params_of_run
from specdec_lib.machine.step_costs import write_step_costs
from specdec_lib.report.pages import ROOT, STUDY, publish
from specdec_lib.study.table import read_results

PUBLISHED = sorted(folder for folder in (ROOT / "outputs" / "published").glob("*") if folder.is_dir())


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_readme_shows_the_numbers_of_the_published_table(folder):
    facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    params = params_of_run(facts, source="environment.json")
    text = publish.README.read_text(encoding="utf-8")
    assert publish.with_headline(text, params, read_results(folder)) == text


def test_something_is_published():
    assert PUBLISHED


def test_what_is_published_is_small():
    """At most 8 MB together, and each page below 5 MB."""
    files = [path for folder in PUBLISHED for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert max(path.stat().st_size for path in files) < 5e6


def test_the_headline_lists_every_method_and_what_is_between_the_marks_is_replaced():
    params = study()
    text = f"before\n<!-- headline {params.gpu} -->\nold numbers\n<!-- end of headline -->\nafter"
    new = publish.with_headline(text, params, synthetic_rows(params))
    assert "old numbers" not in new
    assert new.startswith("before")
    assert new.endswith("after")
    assert "| draft model | 4 | 0 |" in new
    assert "transformers.generate" in new


def test_a_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="lacks the marks"):
        publish.with_headline("nothing here", study(), synthetic_rows())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A whole run with a certificate, what was published before, and a README."""
    params, folder, published = study(), tmp_path / "run", tmp_path / "outputs" / "published" / "synthetic"
    (folder / "reports").mkdir(parents=True)
    for name in STUDY:
        (folder / "reports" / f"{name}.html").touch()
    published.mkdir(parents=True)
    (published / "before.txt").touch()
    synthetic_rows(params).to_parquet(folder / "results.parquet")
    write_step_costs(folder, [])
    (folder / "environment.json").write_text(json.dumps({"params": params.model_dump()}))
    for name, text in {"index.html": "", "calibration.json": "{}", "exactness.json": '{"passed": true}'}.items():
        (folder / name).write_text(text)
    readme = tmp_path / "README.md"
    readme.write_text(f"<!-- headline {params.gpu} -->\n<!-- end of headline -->")
    monkeypatch.setattr(publish, "README", readme)
    return params, folder, published


def test_a_whole_run_takes_the_place_of_what_was_published(run):
    params, folder, published = run
    assert publish.publish(params, folder, published) == published
    assert {*publish.KEPT, "exactness.json", "calibration.json", "speedup.png"} == {
        path.name for path in published.iterdir()
    }
    assert [path.name for path in published.parent.iterdir() if path.is_dir()] == [published.name]
    assert "| draft model |" in publish.README.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_costs.json": None}, "step_costs.json is missing: run the study to its end"),
        ({"reports/03_cost_analysis.html": None}, "03_cost_analysis.html is missing: run the study to its end"),
        ({"exactness.json": None}, r"exactness.json is no certificate of exactness \(it is missing\)"),
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
    assert "draft model" not in publish.README.read_text()


@pytest.mark.parametrize("change", [{"tensor_parallel": 2}, {"weights": "random", "accepted_per_step": [1]}])
def test_a_study_that_makes_no_certificate_is_published_without(run, change):
    params, folder, published = run
    (folder / "exactness.json").unlink()
    if "tensor_parallel" in change:
        (folder / "calibration.json").unlink()
    publish.publish(params.model_copy(update=change), folder, published)
    assert (published / "speedup.png").exists()
