"""From params, or from the data of a finished run, to pages: execute the notebooks, render them, write the index."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from specdec_lib.analysis.acceptance import FILE as ACCEPTANCE
from specdec_lib.config import StudyParams
from specdec_lib.exactness.certificate import FILE as CERTIFICATE
from specdec_lib.machine.files import locked, write_atomically, writing
from specdec_lib.params_files import load_params, notebook_parameters
from specdec_lib.report.captions.verdict import in_short
from specdec_lib.report.index import COMPARISON, overview_page
from specdec_lib.report.notebooks import NOTEBOOKS, execute, start_timeout
from specdec_lib.report.render import render_page
from specdec_lib.report.run_page import ADVISOR, CORRECTNESS, OF_TEXT, run_page, why_no_certificate
from specdec_lib.study.sweep import run_first_blocks

STUDY = {  # the notebooks of a run, in order, with the text of a link to each
    CORRECTNESS: "Correctness: is the output distribution untouched?",
    "02_latency_sweep": "Latency: when does it pay, and by how much?",
    "03_cost_analysis": "Cost: what does a million tokens cost?",
    ADVISOR: "Advisor: what to set?",
}
PEERS, PEERS_TITLE = "05_peers", "Peers: what would other engines do with the same weights?"  # by make bench-peers
TABLE, PEER_ROWS = "results.parquet", "peer_rows.parquet"
DATA = {  # what each reads
    CORRECTNESS: CERTIFICATE,
    "02_latency_sweep": TABLE,
    "03_cost_analysis": TABLE,
    ADVISOR: ACCEPTANCE,
    PEERS: PEER_ROWS,
}


def make_reports(params: StudyParams, output_root: Path) -> Path:
    """Run a whole study: measure what is missing and write all pages; returns the index in `output_root/<gpu>`.

    Raises:
        ValueError: another run is at work in that folder, or SPECDEC_START_TIMEOUT is no number of seconds.
        RuntimeError: a notebook did not run to its end, with its error; or the folder cannot be written.
    """
    folder = (Path(output_root) / params.gpu).resolve()
    start_timeout()  # refused before anything is measured
    names = [name for name in STUDY if name not in OF_TEXT or not why_no_certificate(params)]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, "run"):
            for file in (TABLE, CERTIFICATE):  # with these the folder would count as finished, and be read only
                (folder / file).unlink(missing_ok=True)
            write_index(params, folder)
            rows = run_first_blocks(params, folder)
            if rows is not None:
                print(f"after the first prompts: {in_short(rows, params)}", flush=True)
            return _make_pages(params, folder, names, notebook_parameters(params))


def render_reports(folder: Path) -> Path:
    """Write all pages of a run anew with today's code, from the data in its folder; returns the index.

    Each notebook whose data is there is executed again. It reads only: no weights, device or compiler are needed.

    Raises:
        ValueError: the folder holds no run, or another command is at work in it.
        RuntimeError: a notebook did not run to its end, with its error; or the folder cannot be written.
    """
    folder = Path(folder).resolve()
    if not (folder / "environment.json").exists():
        raise ValueError(f"{folder} holds no run: make one with make run GPU=<name>")
    names = [name for name, file in DATA.items() if (folder / file).exists()]
    with writing(folder), locked(folder, "run"):
        return _make_pages(load_params(folder), folder, names, {"gpu": str(folder)})


def make_comparison(output_root: Path, gpus: Sequence[str] = ()) -> Path:
    """Write the comparison of all runs below `output_root`, or of those named; returns its page, or raises as above."""
    root = Path(output_root).resolve()
    page = _make_page(root / "compare", COMPARISON, {"outputs": str(root), "gpus": list(gpus)})
    write_atomically(root / "index.html", overview_page(root))
    return page


def make_peers(params: StudyParams, folder: Path) -> Path:
    """Write the page about other engines from the rows in `folder`; returns the page, or raises as above."""
    page = _make_page(Path(folder).resolve(), PEERS, notebook_parameters(params))
    write_index(params, folder)
    return page


def write_index(params: StudyParams, folder: Path) -> Path:
    """Write `folder/index.html`, also of an unfinished run, and the overview of all runs next to the folder."""
    titles = STUDY | ({PEERS: PEERS_TITLE} if _page(folder, PEERS).exists() else {})
    write_atomically(folder / "index.html", run_page(params, folder, titles))
    write_atomically(folder.parent / "index.html", overview_page(folder.parent))
    return folder / "index.html"


def _make_pages(params: StudyParams, folder: Path, names: Iterable[str], values: dict[str, Any]) -> Path:
    """Execute notebooks one after another, write a page of each that runs to its end, and the index.

    Older pages are removed first and the index names what is missing, so no page of an earlier run passes for one of
    this run, even if this process is killed.
    """
    for name in (*STUDY, *names):
        _page(folder, name).unlink(missing_ok=True)
    write_index(params, folder)
    errors = []
    for name in names:
        try:
            _make_page(folder, name, values)
        except RuntimeError as error:
            errors.append(str(error))
    index = write_index(params, folder)
    if errors:
        raise RuntimeError("; ".join(errors))
    return index


def _make_page(folder: Path, name: str, values: dict[str, Any]) -> Path:
    executed, page = folder / "notebooks" / f"{name}.ipynb", _page(folder, name)
    for path in (executed, page):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    print(f"{name}: running", flush=True)
    started = time.monotonic()
    error = execute(NOTEBOOKS / f"{name}.ipynb", executed, values | {"output_folder": str(folder)})
    print(f"{name}: {error or 'complete'} ({time.monotonic() - started:.0f} s)", flush=True)
    if error:
        raise RuntimeError(f"{name} {error}")
    home = ("../../index.html", "All runs") if name == COMPARISON else ("../index.html", "All results of this run")
    write_atomically(page, render_page(executed, *home))
    return page


def _page(folder: Path, name: str) -> Path:
    return folder / "reports" / f"{name}.html"
