"""Executing, rendering and indexing: what ran to its end is shown, what did not is named."""

import json
import math
import os
import shutil
import sys
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from synthetic_rows import study, synthetic_rows

from specdec_lib.report.index import verdict
from specdec_lib.report.pages import pages as report

PARAMS = study()
PARAMETERS = new_code_cell("output_folder = ''", metadata={"tags": ["parameters"]})
FINISH = "from specdec_lib.report.pages import mark_complete\nmark_complete(output_folder, '{name}')"


def write_notebook(folder, name, *code):
    folder.mkdir(exist_ok=True)
    finish = FINISH.format(name=name)
    body = [new_markdown_cell(f"# {name}"), PARAMETERS, *map(new_code_cell, [*code, finish])]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=body, metadata={"kernelspec": kernel}), folder / f"{name}.ipynb")


@pytest.fixture
def finished_run(tmp_path):
    """`outputs/` after a sweep: a table, an environment, and one finished notebook with a figure."""
    folder = tmp_path / PARAMS.gpu
    (folder / "notebooks").mkdir(parents=True)
    synthetic_rows(PARAMS).to_parquet(folder / "results.parquet")
    environment = {"device_name": "<script>alert(1)</script>", "versions": {"torch": "2"}, "commit": None, "params": {}}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def test_notebooks_run_with_this_interpreter_and_failures_are_named(finished_run, tmp_path, monkeypatch, capfd):
    """One raises, one writes the table and loses its kernel, and the real cost notebook completes on that table.

    The table and marker of an earlier run do not count.

    No kernel is registered, and the environment of this interpreter is not on PATH.
    """
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "none"))
    notebooks = tmp_path / "notebooks"
    same = f"import sys\nassert sys.executable == {sys.executable!r}, sys.executable"
    write_notebook(notebooks, "01_correctness", same, "print('a line')", "raise ValueError('no such\\ndevice')")
    table, aside = str(finished_run / "results.parquet"), str(tmp_path / "aside.parquet")
    shutil.copy(table, aside)
    writes = f"import os, shutil, signal\nassert not os.path.exists({table!r})\nshutil.copy({aside!r}, {table!r})"
    write_notebook(notebooks, "02_latency_sweep", f"{writes}\nos.kill(os.getpid(), signal.SIGKILL)")
    (notebooks / "03_cost_analysis.ipynb").symlink_to(report.NOTEBOOKS / "03_cost_analysis.ipynb")
    report.mark_complete(finished_run, "02_latency_sweep")  # of an earlier run: must not count

    with pytest.raises(RuntimeError, match="01_correctness failed: ValueError: no such device; 02_latency") as error:
        report.run_notebooks(PARAMS, tmp_path, notebooks)

    assert "03_cost_analysis" not in str(error.value)
    assert "a line" in capfd.readouterr().out
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "none")
    (page,) = report.render_reports(finished_run)
    text = page.read_text(encoding="utf-8")
    assert page.stem == "03_cost_analysis"
    assert text.count("<img") == 2
    assert "Cheapest per million tokens" in text
    assert "No description has been provided" not in text
    index = report.write_index(PARAMS, finished_run).read_text(encoding="utf-8")
    assert index.count("missing: this part did not run to its end") == 2


def test_index_of_a_run_that_measured_nothing_says_so(tmp_path):
    index = report.write_index(PARAMS, tmp_path).read_text(encoding="utf-8")
    assert "Nothing has been measured yet" in index


def test_reports_are_self_contained_and_small(finished_run):
    figure = nbformat.v4.new_output(
        "display_data",
        {"image/png": "iVBORw0KGgo=", "text/plain": "x"},
        metadata={"image/png": {"alt": 'a "curve" <i>', "width": 460}},
    )
    noise = nbformat.v4.new_output("stream", name="stdout", text="[1/9 cells]")
    warning = nbformat.v4.new_output("stream", name="stderr", text="SomeWarning: beware")
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("import this", outputs=[warning]),
        new_code_cell("secret_code()", outputs=[figure]),
        new_code_cell("run()", outputs=[noise], metadata={"tags": ["progress"]}),
        PARAMETERS,
    ]
    nbformat.write(new_notebook(cells=cells), finished_run / "notebooks" / "02_latency_sweep.ipynb")
    report.mark_complete(finished_run, "02_latency_sweep")
    stale = finished_run / "reports" / "01_correctness.html"
    stale.parent.mkdir()
    stale.write_text("an earlier run")

    (page,) = report.render_reports(finished_run)
    text = page.read_text(encoding="utf-8")

    assert page.stat().st_size < 5e6
    assert not stale.exists()
    assert "<script" not in text
    assert not any(f'{attribute}="http' in text for attribute in ("src", "href"))
    assert 'alt="a &quot;curve&quot; &lt;i&gt;"' in text or "alt='a \"curve\" &lt;i&gt;'" in text
    assert text.count("secret_code") == text.count('<details class="code">') - 2 == 1  # there, behind a disclosure
    assert "[1/9 cells]" not in text
    assert "SomeWarning" not in text
    assert "output_folder" not in text


def test_index_shows_headline_environment_and_escapes(finished_run):
    index = report.write_index(PARAMS, finished_run).read_text(encoding="utf-8")
    assert "Speedup" in index
    assert "95 % interval" in index
    assert "without speculation" in index
    assert "tokens per target pass" in index
    assert "Over transformers.generate" in index
    assert "&lt;script&gt;alert(1)" in index
    assert "<script" not in index
    assert "No cell failed or was skipped, and every row is counted." in index


def test_cards_answer_and_link_to_the_report_that_exists(finished_run):
    (finished_run / "reports").mkdir()
    (finished_run / "reports" / "02_latency_sweep.html").touch()
    index = report.write_index(PARAMS, finished_run).read_text(encoding="utf-8")
    assert index.count("Does speculation pay") == len(PARAMS.temperatures)
    assert index.count('href="reports/02_latency_sweep.html#headline"') == 2 * len(PARAMS.temperatures)
    assert 'href="reports/03_cost_analysis.html' not in index
    for card in ("Speedup", "Time per output token", "Acceptance rate", "Peak memory", "$ per million tokens"):
        assert index.count(f"<span>{card}</span>") == len(PARAMS.temperatures)


@pytest.mark.parametrize(("certificate", "shown"), [(None, "none"), (True, "passed"), (False, "failed")])
def test_the_exactness_card_says_what_the_certificate_says(finished_run, certificate, shown):
    if certificate is not None:
        tests = [{"detectable_bias": 0.05}, {"detectable_bias": 0.193}]
        record = {"passed": certificate, "tests": tests, "failures": [] if certificate else ["law: <draft> is biased"]}
        (finished_run / "exactness.json").write_text(json.dumps(record))
    index = report.write_index(PARAMS, finished_run).read_text(encoding="utf-8")
    assert f">{shown}</strong>" in index
    assert ("2 tests of sampled output; a bias above 0.19 would have shown in any" in index) == (certificate is True)
    assert ("law: &lt;draft&gt; is biased" in index) == (certificate is False)


def test_exactness_does_not_apply_to_random_weights_and_nothing_is_called_missing_for_it(finished_run):
    random = PARAMS.model_copy(update={"weights": "random", "accepted_per_step": [2]})
    index = report.write_index(random, finished_run).read_text(encoding="utf-8")
    assert index.count("does not apply: random weights") == 2  # the report and the certificate
    assert index.count("missing: this part did not run to its end") == 2  # the other two reports


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(1.1, 1.4, "yes"), (0.9, 1.2, "unclear"), (0.5, 0.8, "no"), (math.nan, math.nan, "unclear")],
)
def test_speculation_pays_only_if_the_whole_interval_says_so(low, high, answer):
    line = SimpleNamespace(speedup=1.0, speedup_low=low, speedup_high=high)
    assert verdict(line).startswith(answer)


def test_the_overview_lists_every_run_and_the_published_ones(finished_run, tmp_path):
    environment = {"params": PARAMS.model_dump(), "device_name": "a <machine>", "ended": "2026-01-01T00:00:00+00:00"}
    (finished_run / "environment.json").write_text(json.dumps(environment))
    report.write_index(PARAMS, finished_run)
    shutil.copytree(finished_run, tmp_path / "published" / "cpu")
    broken = tmp_path / "old"
    broken.mkdir()
    (broken / "index.html").touch()
    unpriced = shutil.copytree(finished_run, tmp_path / "unpriced")
    environment["params"]["price"] = "sold-by-nobody"
    (unpriced / "environment.json").write_text(json.dumps(environment))
    report.write_index(PARAMS, finished_run)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{name}/index.html"' in text for name in (PARAMS.gpu, "published/cpu", "old"))
    assert "a &lt;machine&gt;, finished 2026-01-01 00:00:00 UTC" in text
    assert text.count("Does speculation pay") == 2 * len(PARAMS.temperatures)
    assert "No numbers: old/environment.json" in text
    assert "No numbers: unknown price &#39;sold-by-nobody&#39;" in text


def test_a_run_without_a_row_that_counts_has_an_index_that_says_so(finished_run):
    rows = synthetic_rows(PARAMS).head(4)
    rows["foreign_processes"] = 1
    rows.to_parquet(finished_run / "results.parquet")
    index = report.write_index(PARAMS, finished_run).read_text(encoding="utf-8")
    assert "4 rows or blocks failed, skipped or not counted" in index
    assert "1 other process(es) used the device" in index


def test_index_lists_failed_cells_with_their_reason(finished_run):
    rows = synthetic_rows(PARAMS)
    rows.loc[:2, ["status", "error"]] = ["failed", "OutOfMemoryError: <20 GiB>"]
    rows.to_parquet(finished_run / "results.parquet")
    index = report.write_index(PARAMS, finished_run).read_text(encoding="utf-8")
    assert "3 rows or blocks failed, skipped or not counted" in index
    assert "OutOfMemoryError: &lt;20 GiB&gt;" in index
