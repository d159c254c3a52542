"""Executing, rendering and indexing: what ran to its end is shown, what did not is named."""

import json
import os
import re
import shutil
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic_rows import study, synthetic_rows
from written_notebooks import PARAMETERS, write_notebook

from specdec_lib.report import pages
from specdec_lib.report.notebooks import NOTEBOOKS, ROOT
from specdec_lib.report.render import render_page

ONE = {"num_draft_tokens": [4], "batch_sizes": [1], "prompt_tokens": [0], "max_new_tokens": [48]}
PARAMS = study(gpu="smoke", **ONE)


@pytest.fixture
def finished_run(tmp_path):
    """`outputs/smoke` after a sweep: a table and an environment."""
    folder = tmp_path / "outputs" / PARAMS.gpu
    (folder / "reports").mkdir(parents=True)
    synthetic_rows(PARAMS).to_parquet(folder / "results.parquet")
    facts = {"device_name": "<script>alert(1)</script>", "versions": {"torch": "2"}, "commit": None}
    (folder / "environment.json").write_text(json.dumps(facts | {"params": PARAMS.model_dump()}))
    return folder


def index_of(folder, params=PARAMS):
    return pages.write_index(params, folder).read_text(encoding="utf-8")


def test_notebooks_run_with_this_interpreter_and_failures_are_named(finished_run, tmp_path, monkeypatch, capfd):
    """One raises, one writes the table and loses its kernel, and the real cost notebook completes on that table.

    Pages and table of an earlier run do not count. No kernel is registered, and this interpreter is not on PATH.
    """
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "none"))
    notebooks = tmp_path / "notebooks"
    monkeypatch.setattr(pages, "NOTEBOOKS", notebooks)
    same = f"import sys\nassert sys.executable == {sys.executable!r}, sys.executable"
    write_notebook(notebooks, "01_correctness", same, "print('a line')", "raise ValueError('no such\\ndevice')", "1")
    table, aside = str(finished_run / "results.parquet"), str(tmp_path / "aside.parquet")
    shutil.copy(table, aside)
    writes = f"import os, shutil, signal\nassert not os.path.exists({table!r})\nshutil.copy({aside!r}, {table!r})"
    write_notebook(notebooks, "02_latency_sweep", f"{writes}\nos.kill(os.getpid(), signal.SIGKILL)", "1")
    (notebooks / "03_cost_analysis.ipynb").symlink_to(NOTEBOOKS / "03_cost_analysis.ipynb")
    write_notebook(notebooks, "06_advisor", "raise ValueError('no profile')")
    (finished_run / "reports" / "02_latency_sweep.html").write_text("an earlier run")

    with pytest.raises(RuntimeError, match="01_correctness failed: ValueError: no such device; 02_latency") as error:
        pages.make_reports(PARAMS, tmp_path / "outputs")

    assert "03_cost_analysis" not in str(error.value)
    assert "a line" in capfd.readouterr().out
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "none")
    (page,) = (finished_run / "reports").iterdir()
    text = page.read_text(encoding="utf-8")
    assert page.stem == "03_cost_analysis"
    assert text.count("<img") == 2
    assert "of a million tokens" in text
    assert "a figure without a description" not in text
    index = (finished_run / "index.html").read_text(encoding="utf-8")
    assert index.count("missing: this part did not run to its end") == 3


def test_a_page_is_self_contained_and_leaves_out_params_warnings_and_progress(tmp_path):
    figure = {"image/png": "iVBORw0KGgo=", "text/plain": "x"}
    metadata = {"image/png": {"alt": 'a "curve" <i>', "width": 460}}
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("import this", outputs=[new_output("stream", name="stderr", text="SomeWarning: beware")]),
        new_code_cell("secret_code()", outputs=[new_output("display_data", figure, metadata=metadata)]),
        new_code_cell("run()", outputs=[new_output("stream", text="[1/9 cells]")], metadata={"tags": ["progress"]}),
        PARAMETERS,
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "a.ipynb")
    text = render_page(tmp_path / "a.ipynb")
    assert "<script" not in text
    assert not any(f'{attribute}="http' in text for attribute in ("src", "href"))
    assert 'alt="a &#34;curve&#34; &lt;i&gt;"' in text
    assert text.count("secret_code") == text.count('<details class="code">') - 2 == 1  # there, but folded away
    assert not any(left_out in text for left_out in ("[1/9 cells]", "SomeWarning", "output_folder"))


def test_index_answers_shows_the_headline_and_escapes(finished_run):
    index = index_of(finished_run)
    assert index.count(", chosen before the run") == len(PARAMS.temperatures)
    for text in (
        "prompts that ran all of them",
        "make run GPU=smoke SET=",
        "whole calls, T = 0",
        "include reading the prompt",
        "p0, p1",
    ):
        assert text in index
    assert "&lt;script&gt;alert(1)" in index
    assert "<script" not in index
    assert "rows count: none failed, drifted or was skipped." in index
    assert index.count("<img") == 4


def test_what_does_not_count_is_numbered_by_its_reason(finished_run):
    rows = synthetic_rows(PARAMS)
    rows.loc[(rows["prompt_group"] == 1) & (rows["temperature"] == 0), "drifted"] = True
    rows.to_parquet(finished_run / "results.parquet")
    excluded = int(rows["drifted"].fillna(False).sum())
    index = index_of(finished_run)
    assert f"{excluded} of {len(rows)} rows count in no number (drift {excluded})" in index
    assert "4 of 5 prompts count" in index


def test_a_link_leads_to_a_report_that_exists(finished_run):
    (finished_run / "reports" / "02_latency_sweep.html").touch()
    index = index_of(finished_run)
    assert index.count('href="reports/02_latency_sweep.html"') == 1
    assert 'href="reports/03_cost_analysis.html' not in index


def test_the_four_checks_say_what_the_certificate_says(finished_run):
    assert "this run wrote no certificate" in index_of(finished_run)
    record = json.loads((ROOT / "outputs" / "published" / "cpu" / "exactness.json").read_text())
    (finished_run / "exactness.json").write_text(json.dumps(record))
    assert index_of(finished_run).count(': <b class="good">passed</b>') == 4
    failures = ["joint law: <draft> at position 1 is biased"]
    (finished_run / "exactness.json").write_text(json.dumps(record | {"failures": failures, "passed": False}))
    index = index_of(finished_run)
    assert index.count(': <b class="bad">failed</b>') == 1
    assert "joint law: &lt;draft&gt; at position 1 is biased" in index


def test_exactness_does_not_apply_to_random_weights_and_nothing_is_called_missing_for_it(finished_run):
    random = PARAMS.model_copy(update={"weights": "random", "accepted_per_step": [2]})
    index = index_of(finished_run, random)
    assert index.count("does not apply: random weights") == 3  # two reports and the certificate
    assert index.count("missing: this part did not run to its end") == 2  # the other two reports


def test_the_overview_lists_every_run_and_the_published_ones(finished_run):
    outputs = finished_run.parent
    index_of(finished_run)
    shutil.copytree(finished_run, outputs / "published" / "cpu")
    broken = outputs / "old"
    broken.mkdir()
    (broken / "index.html").touch()
    unpriced = shutil.copytree(finished_run, outputs / "unpriced")
    facts = json.loads((unpriced / "environment.json").read_text())
    facts["params"]["price"] = "sold-by-nobody"
    (unpriced / "environment.json").write_text(json.dumps(facts))
    index_of(finished_run)
    text = (outputs / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{name}/index.html"' in text for name in (PARAMS.gpu, "published/cpu", "old"))
    assert text.count('<th scope="row">') == 4
    assert all(f'<th scope="col">T = {temperature:g}</th>' in text for temperature in PARAMS.temperatures)
    assert text.count("draft model, γ = 4, batch 1, n = ") == 2 * len(PARAMS.temperatures)
    assert text.count("No numbers: ") == 2
    assert "unknown price &#39;sold-by-nobody&#39;" in text


def test_the_overview_gives_a_verdict_with_its_interval_exactness_and_failures(finished_run):
    (finished_run / "exactness.json").write_text(json.dumps({"passed": True, "failures": []}))
    rows = synthetic_rows(PARAMS)
    rows.loc[:2, ["status", "error"]] = ["failed", "OutOfMemoryError"]
    rows.to_parquet(finished_run / "results.parquet")
    index_of(finished_run)
    text = (finished_run.parent / "index.html").read_text(encoding="utf-8")
    verdicts = re.findall(r'<td class="verdict"><b class="(\w*)">(\w+)</b>, [\d.]+× \([\d.]+ to', text)
    assert [{"good": "Yes", "bad": "No", "": "Unclear"}[tone] == answer for tone, answer in verdicts] == [True, True]
    assert '<td class="good">passed</td>' in text
    assert f'<a href="{PARAMS.gpu}/index.html#troubles">3</a>' in text


def test_the_contents_of_a_page_stand_after_its_title_and_before_its_text(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title\n\nFirst words.\n\n## Part")]), tmp_path / "a.ipynb")
    text = render_page(tmp_path / "a.ipynb")
    places = [text.index(part) for part in ("<h1>Title</h1>", "<nav", "First words.", "<h2")]
    assert places == sorted(places)
    assert text.count("Title</h1>") == 1


def test_an_index_without_a_row_that_counts_says_so(finished_run, tmp_path):
    rows = synthetic_rows(PARAMS).head(4).assign(foreign_processes=1)
    rows.to_parquet(finished_run / "results.parquet")
    index = index_of(finished_run)
    assert "4 of 4 rows count in no number (shared 4)" in index
    assert "1 other process(es) used the device" in index
    assert "Nothing has been measured yet" in index_of(tmp_path)


def test_index_lists_failed_cells_with_their_reason(finished_run):
    rows = synthetic_rows(PARAMS)
    rows.loc[:2, ["status", "error"]] = ["failed", "OutOfMemoryError: <20 GiB>"]
    rows.to_parquet(finished_run / "results.parquet")
    index = index_of(finished_run)
    assert "3 rows failed" in index
    assert f"3 of {len(rows)} rows count in no number (failed 3)" in index
    assert "OutOfMemoryError: &lt;20 GiB&gt;" in index
