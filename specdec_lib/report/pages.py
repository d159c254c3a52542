"""From params to something to read: execute the notebooks, render them as HTML, write the index of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from specdec_lib.config import StudyParams
from specdec_lib.exactness import certificate as exactness
from specdec_lib.machine.files import writing
from specdec_lib.report.index import CORRECTNESS, overview_page, run_page, why_no_certificate, write_page
from specdec_lib.study.lock import locked
from specdec_lib.study.runner import TERMINAL

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
STUDY = {  # the notebooks of a run, in order, and what a link to each says
    CORRECTNESS: "Correctness: is the output distribution untouched?",
    "02_latency_sweep": "Latency: when does it pay, and by how much?",
    "03_cost_analysis": "Cost: what does a million tokens cost?",
}
COMPARISON = "04_gpu_comparison"  # of several runs, so no part of one
PEERS = "05_peers"  # of make bench-peers, which is a run of its own
LOCK = "run"  # beside the sweep's own, which a notebook run by hand takes too
PEERS_TITLE = "Peers: what would other engines do with the same weights?"


def make_reports(params: StudyParams, output_root: Path) -> Path:
    """Execute, render and index a whole study; returns the index page in `output_root/<gpu>`.

    The index is written before and after, and says which report is missing: whatever kills a run, no page of an
    earlier one passes for its.

    Raises:
        ValueError: another run is at work in that folder.
        RuntimeError: a notebook did not run to its end; names it and its error. Or the folder cannot be written.
    """
    folder = Path(output_root) / params.gpu
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, LOCK):
            return _make_reports(params, folder)


def _make_reports(params: StudyParams, folder: Path) -> Path:
    _forget_earlier_run(folder)
    write_index(params, folder)
    try:
        run_notebooks(params, folder.parent)
    except RuntimeError:
        render_reports(folder)
        write_index(params, folder)
        raise
    render_reports(folder)
    return write_index(params, folder)


def run_notebooks(params: StudyParams, output_root: Path, notebooks: Path = NOTEBOOKS) -> None:
    """Execute the notebooks of `STUDY` that lie in `notebooks`, one after another, into `output_root/<gpu>/notebooks`.

    All are tried. One counts as complete only if its last cell wrote the marker of `mark_complete`: after a kernel
    dies, papermill records that every cell completed.

    Raises:
        RuntimeError: naming each notebook that did not run to its end, and why.
    """
    folder = (Path(output_root) / params.gpu).resolve()
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    values = params.model_dump() | {"output_folder": str(folder)}
    names = [name for name in STUDY if name != CORRECTNESS or not why_no_certificate(params)]
    sources = [notebooks / f"{name}.ipynb" for name in names if (notebooks / f"{name}.ipynb").exists()]
    _forget_earlier_run(folder)
    errors = []
    with _kernel_of_this_interpreter():
        for source in sources:
            started = time.monotonic()
            print(f"{source.stem}: running", flush=True)
            error = _run_notebook(source, folder, values)
            seconds = time.monotonic() - started
            print(f"{source.stem}: {error or 'complete'} ({seconds:.0f} s)", flush=True)
            if error:
                errors.append(f"{source.stem} {error}")
    if errors:
        raise RuntimeError("; ".join(errors))


def _forget_earlier_run(folder: Path) -> None:
    """Nothing of an earlier run may pass for this one's."""
    for name in STUDY:
        _marker(folder, name).unlink(missing_ok=True)
        _page(folder, name).unlink(missing_ok=True)
    for file in ("results.parquet", exactness.FILE):
        (folder / file).unlink(missing_ok=True)


def mark_complete(output_folder: str | Path, name: str) -> None:
    """The last cell of a notebook calls this: only now is the notebook complete."""
    marker = _marker(Path(output_folder), name)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def render_reports(folder: Path, names: Iterable[str] = STUDY) -> list[Path]:
    """Render each complete notebook as a self-contained HTML page in `folder/reports`, and remove pages of others."""
    from specdec_lib.report.render import render_page

    (folder / "reports").mkdir(parents=True, exist_ok=True)
    pages = []
    for name in names:
        page = _page(folder, name)
        if _marker(folder, name).exists():
            write_page(page, render_page(folder / "notebooks" / f"{name}.ipynb"))
            pages.append(page)
        else:
            page.unlink(missing_ok=True)
    return pages


def make_comparison(output_root: Path, gpus: Sequence[str] = ()) -> Path:
    """Execute and render the comparison of all runs below `output_root`, or of those named; returns its page.

    Raises:
        RuntimeError: the notebook did not run to its end; with its error.
    """
    folder = (Path(output_root) / "compare").resolve()
    return _make_page(folder, COMPARISON, {"outputs": str(Path(output_root).resolve()), "gpus": list(gpus)})


def make_peers(params: StudyParams, folder: Path) -> Path:
    """Execute and render the page about other engines from the rows in `folder`; returns the page.

    Raises:
        RuntimeError: the notebook did not run to its end; with its error.
    """
    page = _make_page(Path(folder).resolve(), PEERS, {"seed": params.seed})
    write_index(params, folder)
    return page


def _make_page(folder: Path, name: str, values: dict[str, Any]) -> Path:
    """Execute and render a notebook that is no part of a study, into `folder`; returns its page."""
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    _marker(folder, name).unlink(missing_ok=True)
    with _kernel_of_this_interpreter():
        error = _run_notebook(NOTEBOOKS / f"{name}.ipynb", folder, values | {"output_folder": str(folder)})
    pages = render_reports(folder, [name])
    if error:
        raise RuntimeError(f"{name} {error}")
    return pages[0]


def write_index(params: StudyParams, folder: Path) -> Path:
    """Write `folder/index.html`, the page of this run, and the overview of all runs beside the folder.

    Works for an unfinished run too: what is missing is named.
    """
    titles = STUDY | ({PEERS: PEERS_TITLE} if _marker(folder, PEERS).exists() else {})
    index = write_page(folder / "index.html", run_page(params, folder, titles))
    write_page(folder.parent / "index.html", overview_page(folder.parent))
    return index


def _run_notebook(source: Path, folder: Path, values: dict[str, Any]) -> str | None:
    """Execute one notebook; returns what went wrong, or None."""
    import papermill
    from papermill.exceptions import PapermillException, PapermillExecutionError
    from traitlets.config import Config

    marker = _marker(folder, source.stem)
    logging.getLogger("papermill").addFilter(_is_no_epitaph)
    try:
        papermill.execute_notebook(
            source,
            folder / "notebooks" / source.name,
            parameters=values,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            cwd=ROOT,
            config=Config(
                KernelManager={"transport_encryption": "auto"},  # else the kernel warns of plain TCP
                NotebookClient={"shutdown_kernel": "immediate"},  # nothing is left in it; and Ctrl-C need not wait
            ),
        )
    except PapermillExecutionError as error:
        return f"failed: {error.ename}: {' '.join(str(error.evalue).split())}"
    except (PapermillException, RuntimeError) as error:
        return f"failed: {' '.join(str(error).split())}"
    return None if marker.exists() else "stopped before its last cell: its kernel died, perhaps for want of memory"


def _is_no_epitaph(record: logging.LogRecord) -> bool:
    """Not the line about a dead kernel: ours says more, and after Ctrl-C it is no error."""
    return not record.getMessage().startswith("Kernel died")


@contextlib.contextmanager
def _kernel_of_this_interpreter() -> Iterator[None]:
    """Make `python3` mean this very interpreter, whatever kernels are registered on the machine."""
    from ipykernel.kernelspec import get_kernel_dict

    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder) / "kernels" / "python3"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps(get_kernel_dict()), encoding="utf-8")
        quiet = "ignore:IProgress not found"  # tqdm.auto asks for widgets, which no report can show
        if sys.stderr.isatty():
            os.environ[TERMINAL] = "1"
        else:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a log has no use for them
        with _prepended("JUPYTER_PATH", folder, os.pathsep), _prepended("PYTHONWARNINGS", quiet, ","):
            yield


@contextlib.contextmanager
def _prepended(variable: str, value: str, separator: str) -> Iterator[None]:
    """Put a value before what an environment variable says, for a while."""
    before = os.environ.get(variable)
    os.environ[variable] = f"{value}{separator}{before}" if before else value
    try:
        yield
    finally:
        os.environ.pop(variable)
        os.environ.update({} if before is None else {variable: before})


def _marker(folder: Path, name: str) -> Path:
    return folder / "notebooks" / f"{name}.complete"


def _page(folder: Path, name: str) -> Path:
    return folder / "reports" / f"{name}.html"
