"""Reading never measures: a run's folder, copied anywhere, renders all its pages without PyTorch."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from specdec_lib.analysis.headline import headline
from specdec_lib.params_files import load_params
from specdec_lib.report.notebooks import ROOT
from specdec_lib.report.publish import BLOCK, README, headline_of_all
from specdec_lib.report.tables.sweep import method_table
from specdec_lib.study.rows.table import read_results

PUBLISHED = sorted(path.parent for path in (ROOT / "outputs" / "published").glob("*/environment.json"))
RENDER = "import sys; from specdec_lib.report.pages import render_reports; render_reports(sys.argv[1])"


class Tables(HTMLParser):
    """The tables of a page: a caption, and lists of cells of which the first is the head."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.text = [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        elif tag == "tr" and self.tables:
            self.tables[-1]["rows"].append([])
        elif tag in ("th", "td", "caption"):
            self.text = ""

    def handle_data(self, data):
        if self.text is not None:
            self.text += data

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append(self.text)
        elif tag == "caption":
            self.tables[-1]["caption"] = self.text
        if tag in ("th", "td", "caption"):
            self.text = None


def printed_in_html(page, columns):
    """The headline table of a page as dictionaries; a column that is the same in every line stands in the caption."""
    (table,) = [table for table in Tables(page).tables if table["caption"].startswith("The headline setting")]
    constant = {
        name: found[1]
        for name in columns
        if (found := re.search(rf"[:,] {re.escape(name)} (.+?)[,.]", table["caption"]))
    }
    head, *lines = table["rows"]
    return [constant | dict(zip(head, line, strict=True)) for line in lines]


def test_the_readme_prints_the_headline_of_the_published_runs_that_it_names():
    block = BLOCK.search(README.read_text(encoding="utf-8"))
    table = block[0].split("\n\n")[0].splitlines()[1:]
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    folders = [folder for folder in PUBLISHED if folder.name in block[2].split()]
    assert len(folders) == len(block[2].split())
    computed = headline_of_all(sorted(folders, key=lambda folder: block[2].index(folder.name)))
    assert [dict(zip(head, line, strict=True)) for line in lines] == computed.to_dict("records")
    for folder in folders:
        params = load_params(folder)
        printed = method_table(headline(read_results(folder), params)).set_index("method")
        for method, speedup in printed[f"speedup, T = {params.temperatures[0]:g}"].items():
            assert speedup in computed.set_index("method").loc[method].tolist()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_index_and_report_print_the_same_headline(folder):
    params = load_params(folder)
    computed = method_table(headline(read_results(folder), params)).astype(str).to_dict("records")
    assert len(computed) > 2
    for page in ("index.html", "reports/02_latency_sweep.html"):
        assert printed_in_html((folder / page).read_text(encoding="utf-8"), computed[0].keys()) == computed


def of_two_prompts(path):
    """Cut a table to the fewest prompts from which an interval can be drawn: more take longer and show the same."""
    pq.write_table(pq.read_table(path, filters=[("prompt_group", "<", 2)]), path)


@pytest.mark.slow
def test_a_copied_run_renders_every_page_without_pytorch(tmp_path):
    """No module can import torch or transformers: neither the command nor the kernels of the notebooks."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in ("torch", "transformers"):
        (hidden / f"{name}.py").write_text("raise ImportError('hidden by this test')")
    copy = tmp_path / "elsewhere" / "a copy"
    data = shutil.ignore_patterns("*.html", "reports", "*.png", "peer*", "transcripts*")
    shutil.copytree(next(folder for folder in PUBLISHED if folder.name == "cpu"), copy, ignore=data)
    of_two_prompts(copy / "results.parquet")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(hidden), str(ROOT)])}
    subprocess.run([sys.executable, "-c", RENDER, copy], check=True, env=environment, cwd=tmp_path)
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (copy / "reports").iterdir()}
    assert pages.keys() == {"01_correctness", "02_latency_sweep", "03_cost_analysis", "06_advisor"}
    assert "<img" in pages["01_correctness"], "the counts of pairs are drawn"
    assert "This run recorded no transcripts" in pages["02_latency_sweep"]
    assert all(f'href="reports/{name}.html' in (copy / "index.html").read_text(encoding="utf-8") for name in pages)
    assert {name: (copy / name).read_bytes() for name in before} == before, "reading changes no data"


def test_a_folder_without_a_run_is_refused(tmp_path):
    from specdec_lib.report.pages import render_reports

    with pytest.raises(ValueError, match="holds no run: make one with make run"):
        render_reports(tmp_path)
    (tmp_path / "environment.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="holds no params"):
        render_reports(tmp_path)
