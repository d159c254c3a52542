"""The README's numbers are those of the committed table."""

import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib import publish
from specdec_lib.config import params_of_run
from specdec_lib.measure.results import read_results
from specdec_lib.report import ROOT

PUBLISHED = sorted(folder for folder in (ROOT / "outputs" / "published").glob("*") if folder.is_dir())


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_readme_shows_the_numbers_of_the_published_table(folder):
    import json

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
