"""Reports are safe to open: hostile text is shown and does nothing, in our own reading and in a real browser."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic_rows import study

from specdec_lib.report.notebooks import NOTEBOOKS
from specdec_lib.report.pages import STUDY
from specdec_lib.report.render import clean, markdown_to_html, render_page
from specdec_lib.report.run_page import run_page
from specdec_lib.report.show import table_html
from specdec_lib.report.transcript import transcript_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
]
RUNS = "document.title='pwned'"


def hostile(server: str) -> str:
    """Everything a page could be made to run or to fetch."""
    return f"""
<script>{RUNS}</script><script src="{server}/1.js"></script><img src="{server}/2.png" onerror="{RUNS}">
<svg onload="{RUNS}"><style>@import url({server}/3.css);</style></svg><body onload="{RUNS}">
<iframe src="{server}/4"></iframe><object data="{server}/5"></object><link rel="stylesheet" href="{server}/6.css">
<a href="javascript:{RUNS}">click</a><a href=" jAvAsCrIpT:{RUNS}">click</a><a href="data:text/html,x">click</a>
<style>p {{ background: url({server}/7.png) }}</style><div style="background: url({server}/8.png)">x</div>
<meta http-equiv="refresh" content="0;url={server}/refresh"><form action="{server}/9"></form>
<details open ontoggle="{RUNS}">x</details><input autofocus onfocus="{RUNS}">
<math><mi xlink:href="javascript:{RUNS}">x</mi></math><noscript><p title="</noscript><img src=x onerror={RUNS}>">
\u202eright to left\u200f \ud800 broken \x00 utf-8 ]]> --> <!-- "' &lt;script&gt; {{{{ 7 * 7 }}}} {{% raw %}}
$\\text{{<script>{RUNS}</script>}}$
"""


def hostile_notebook(path: Path, server: str) -> Path:
    """The same text in every place where a notebook can show text."""
    text = hostile(server)
    steps = [[("own", text, None, None)], [("accepted", text, 0.5, 0.5)]]
    shown = SimpleNamespace(title=text, steps=steps, seconds=[1, 1], emitted=[1, 1], baseline_seconds=[1])
    table = pd.DataFrame({text.replace("\ud800", ""): [text.replace("\ud800", "")]})
    data = [
        {"text/html": text},
        {"text/markdown": f"{text}\n\n[x](javascript:{RUNS}) ![x]({server}/10.png)\n\n```mermaid\n{text}\n```"},
        {"text/plain": text},
        {"text/latex": f"$${text}$$"},
        {"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{text}</svg>"},
        {"application/javascript": RUNS},
        {"text/html": table_html(table, text)},
        {"text/html": f"<style>p {{}}</style>{transcript_html(shown)}"},
        {"image/png": 'x"><script>', "text/plain": text},
    ]
    metadata = {"image/png": {"alt": text, "caption": text, "width": text}}
    outputs = [new_output("display_data", each, metadata=metadata) for each in data]
    outputs += [new_output("stream", name="stdout", text=text), new_output("stream", name="stderr", text=text)]
    prose = new_markdown_cell("# Title\n\n## A < B & `a < b`\n\nThe share $\\alpha_1 < 1$.")
    notebook = new_notebook(cells=[prose, new_code_cell(text, outputs=outputs)], metadata={"title": text})
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("notebooks")
    return render_page(hostile_notebook(folder / "hostile.ipynb", "http://127.0.0.1:9"))


class Opened(HTMLParser):
    """Every tag that a page opens, with its attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_nothing_that_runs_or_loads_is_left(page):
    tags = Opened(page).tags
    known = {tag for tag, _ in tags} & {"script", "svg", "iframe", "object", "form", "input", "noscript", "base"}
    assert not known
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    links = [value for _, attributes in tags for name, value in attributes.items() if name in {"href", "src", "data"}]
    assert all(
        link.startswith(("#", "data:image/png;base64,")) or link in {"../index.html", "data:,"} for link in links
    )


def test_formulas_are_mathml_and_headings_have_names(page):
    assert "<mi>α</mi>" in page
    assert '<h2 id="a-b-a-b">A &lt; B &amp; <code>a &lt; b</code></h2>' in page
    assert '<a href="#a-b-a-b">' in page


def test_own_tables_survive_cleaning():
    text = table_html(pd.DataFrame({"method": ["a", "b"], "speedup": ["1.00", "2.00"]}), "Caption")
    assert clean(text) == text


def test_a_formula_can_neither_link_nor_run():
    assert "javascript" not in markdown_to_html(r"$\href{javascript:alert(1)}{x}$")
    assert "<script" not in markdown_to_html(r"$\text{&lt;script&gt;}$")


@pytest.mark.parametrize("name", STUDY)
def test_the_studys_own_pages_have_headings_in_order_and_contents_that_lead_somewhere(name):
    text = render_page(NOTEBOOKS / f"{name}.ipynb")
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    links, names = re.findall(r'href="#([\w-]+)"', text), re.findall(r' id="([\w-]+)"', text)
    assert len(links) >= 2
    assert set(links) <= set(names)
    assert len(names) == len(set(names))
    assert '<html lang="en">' in text
    assert "\\frac" not in re.sub("<details class=.code.>.*?</details>", "", text, flags=re.DOTALL)


class Listener(BaseHTTPRequestHandler):
    """Notes every request."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(404)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    asked: list[str] = []
    handler = type("Handler", (Listener,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's title after loading, and what the browser wrote to its console."""
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout.decode("utf-8", "replace"), re.DOTALL)
    said = done.stderr.decode("utf-8", "replace").splitlines()
    return (title[1].strip() if title else ""), [line for line in said if "CONSOLE" in line]


@needs_chromium
@pytest.mark.slow
def test_in_a_browser_hostile_text_runs_nothing_and_fetches_nothing(server, tmp_path):
    """The twin without our template shows that the browser would have done both."""
    address, asked = server
    twin = tmp_path / "twin.html"
    bare = hostile(address).replace("http-equiv", "x")  # a page may always lead elsewhere: that is for the sanitiser
    twin.write_text(f"<title>twin</title>{bare}", encoding="utf-8", errors="replace")
    assert browse(twin, tmp_path / "profile-1")[0] == "pwned"
    assert asked
    asked.clear()

    report = tmp_path / "report.html"
    text = render_page(hostile_notebook(tmp_path / "hostile.ipynb", address))
    report.write_text(text, encoding="utf-8", errors="replace")
    title, console = browse(report, tmp_path / "profile-2")
    assert title != "pwned"
    assert "&lt;script&gt;" in title
    assert console == []
    assert asked == []

    report.write_text(text.replace("<main>", f"<main>{bare}", 1), encoding="utf-8", errors="replace")
    assert browse(report, tmp_path / "profile-3")[0] != "pwned", "the policy alone must stop scripts"
    assert asked == [], "the policy alone must stop loading"


@needs_chromium
@pytest.mark.slow
def test_in_a_browser_an_index_with_hostile_names_runs_nothing_and_fetches_nothing(server, tmp_path):
    address, asked = server
    text = hostile(address)
    (tmp_path / "environment.json").write_text(json.dumps({"device_name": text, "versions": {text: text}, text: text}))
    (tmp_path / "exactness.json").write_text(json.dumps({"passed": True, "sentence": text}))
    index = tmp_path / "index.html"
    page = run_page(study(pair=text, prompt_set=text), tmp_path, {"01_correctness": text})
    index.write_text(page, encoding="utf-8", errors="replace")
    title, console = browse(index, tmp_path / "profile")
    assert title == "Speculative decoding on synthetic"
    assert console == []
    assert asked == []
