"""Every link of a page leads somewhere: to a file next to it, to a place in a page, or to an https address."""

import re
import shutil
from pathlib import Path

import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.report import pages
from specdec_lib.report.index import overview_page
from specdec_lib.report.notebooks import ROOT

PUBLISHED = sorted((ROOT / "outputs" / "published").rglob("*.html"))
ONE = {"num_draft_tokens": [4], "batch_sizes": [1], "prompt_tokens": [0], "max_new_tokens": [48]}


def dead_links(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    dead = []
    for link in re.findall(r'<a [^>]*href="([^"]*)"', page.read_text(encoding="utf-8")):
        path, _, name = link.partition("#")
        target = (page.parent / path) if path else page
        alive = target.is_file() and (not name or f'id="{name}"' in target.read_text(encoding="utf-8"))
        dead += [] if link.startswith("https://") or alive else [link]
    return dead


@pytest.mark.parametrize("page", PUBLISHED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_published_page_leads_somewhere(page):
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<h2 id="here"></h2><a href="#here">x</a><a href="#there">x</a><a class="y" href="gone.html">x</a>')
    assert dead_links(page) == ["#there", "gone.html"]


def test_overview_and_comparison_link_to_each_other(tmp_path, monkeypatch):
    """The comparison's notebook is executed by a stub; its page is the real one."""
    params, root = study(gpu="smoke", **ONE), tmp_path / "outputs"
    folder = root / params.gpu
    folder.mkdir(parents=True)
    synthetic_rows(params).assign(foreign_processes=1).to_parquet(folder / "results.parquet")
    pages.write_index(params, folder)
    assert "Comparison" not in overview_page(root)
    monkeypatch.setattr(pages, "execute", lambda source, executed, values: shutil.copy(source, executed) and None)
    comparison = pages.make_comparison(root)
    overview = root / "index.html"
    assert 'href="compare/reports/04_gpu_comparison.html"' in overview.read_text()
    assert 'href="../../index.html">All runs<' in comparison.read_text()
    assert [dead_links(page) for page in (overview, comparison, folder / "index.html")] == [[], [], []]
