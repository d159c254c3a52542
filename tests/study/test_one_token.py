"""A study of one output token has no time per token: null in rows, a dash or a word on pages, never 0 or nan."""

import json
import re

import pytest
from toy_sweep import toy_params

from specdec_lib.report import run_page, show
from specdec_lib.report.captions.verdict import in_short
from specdec_lib.report.index import overview_page
from specdec_lib.report.notebooks import NOTEBOOKS
from specdec_lib.study.sweep import run_sweep_here

ONE = {"max_new_tokens": [1], "batch_sizes": [1, 2], "num_draft_tokens": [1, 4]}
UNDEFINED = re.compile(r"\bnan\b|<NA>|\bNone\b|\binf\b|\b0\.0+ ms")
UNREAD = re.compile(r'src="data:[^"]*"|<pre.*?</pre>|<dd>.*?</dd>', re.DOTALL)  # pictures, params and facts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one token each, with toys."""
    folder = tmp_path_factory.mktemp("outputs") / "smoke"
    params = toy_params().model_copy(update=ONE)
    return params, folder, run_sweep_here(params, folder)


def test_what_is_undefined_is_null(run):
    _, _, rows = run
    assert set(rows["status"]) == {"ok"}
    for name in ("tpot_ms", "itl_p50_ms", "acceptance_rate", "mean_acceptance_length", "steps"):
        assert rows[name].isna().all(), name
    assert (rows["tokens_per_second"] > 0).all()


def test_pages_say_so(run, monkeypatch):
    params, folder, rows = run
    monkeypatch.setattr(run_page, "picture_of", lambda figure: {"data": "", "alt": show._description(figure)})
    (folder / "index.html").write_text(page := run_page.run_page(params, folder, {}))
    for text in (page, overview_page(folder.parent), in_short(rows, params)):
        assert not UNDEFINED.findall(UNREAD.sub("", text))
    assert in_short(rows, params).startswith("Unclear (not measured) at batch 1, greedy")


@pytest.mark.parametrize("notebook", ["02_latency_sweep", "03_cost_analysis"])
def test_notebooks_run_to_their_end_and_say_so(notebook, run, monkeypatch):
    _, folder, _ = run
    said = []
    monkeypatch.setattr(show, "show", lambda figure, finding="": said.extend([show._description(figure), finding]))
    monkeypatch.setattr(show, "show_text", said.append)
    monkeypatch.setattr(show, "show_table", lambda table, name, **_: said.append(show.table_html(table, name)))
    space = {}
    for cell in json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
            if "parameters" in cell["metadata"].get("tags", ()):
                space |= {"gpu": str(folder), "output_folder": str(folder)}
    assert len(said) > 5
    assert not [text for text in said if UNDEFINED.search(text)]
