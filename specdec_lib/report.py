"""From params to something to read: execute the notebooks, render them as HTML, write the index of a run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from specdec_lib.analysis import exactness, findings, metrics, tables
from specdec_lib.analysis.style import METHOD_NAMES
from specdec_lib.config import StudyParams
from specdec_lib.measure.results import read_results
from specdec_lib.measure.sweep import TERMINAL

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TEMPLATES = Path(__file__).resolve().parent / "templates"
STUDY = {  # the notebooks of a run, in order, and what a link to each says
    "01_correctness": "Correctness: is the output distribution untouched?",
    "02_latency_sweep": "Latency: when does it pay, and by how much?",
    "03_cost_analysis": "Cost: what does a million tokens cost?",
}


def make_reports(params: StudyParams, output_root: Path) -> Path:
    """Execute, render and index a whole study; returns the index page in `output_root/<gpu>`.

    The index is written in any case and says which report is missing.

    Raises:
        RuntimeError: a notebook did not run to its end; names it and its error.
    """
    folder = Path(output_root) / params.gpu
    try:
        run_notebooks(params, output_root)
    finally:
        render_reports(folder)
        index = write_index(params, folder)
    return index


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
    sources = [notebooks / f"{name}.ipynb" for name in STUDY if (notebooks / f"{name}.ipynb").exists()]
    for name in STUDY:  # nothing of an earlier run may pass for this one's
        _marker(folder, name).unlink(missing_ok=True)
    (folder / "results.parquet").unlink(missing_ok=True)
    (folder / exactness.FILE).unlink(missing_ok=True)
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


def mark_complete(output_folder: str | Path, name: str) -> None:
    """The last cell of a notebook calls this: only now is the notebook complete."""
    marker = _marker(Path(output_folder), name)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def render_reports(folder: Path) -> list[Path]:
    """Render each complete notebook as a self-contained HTML page in `folder/reports`, and remove pages of others.

    Code, params, warnings and what cells tagged `progress` printed are hidden. The pages need no network.
    """
    from nbconvert.exporters import HTMLExporter
    from traitlets.config import Config

    hidden = {"parameters", "injected-parameters"}
    removal = {"enabled": True, "remove_cell_tags": hidden, "remove_all_outputs_tags": {"progress"}}
    exporter = HTMLExporter(
        config=Config(TagRemovePreprocessor=removal),
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        embed_images=True,
    )
    exporter.register_preprocessor("nbconvert.preprocessors.TagRemovePreprocessor", enabled=True)
    (folder / "reports").mkdir(parents=True, exist_ok=True)
    pages = []
    for name in STUDY:
        page = folder / "reports" / f"{name}.html"
        if _marker(folder, name).exists():
            text, _ = exporter.from_filename(str(folder / "notebooks" / f"{name}.ipynb"))
            _write_at_once(page, text)
            pages.append(page)
        else:
            page.unlink(missing_ok=True)
    return pages


def write_index(params: StudyParams, folder: Path) -> Path:
    """Write `folder/index.html`: headline numbers, links to the reports, failed cells, environment and params.

    Works for an unfinished run too: what is missing is named. All text is escaped.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = folder / "environment.json"
    facts = json.loads(environment.read_text(encoding="utf-8")) if environment.exists() else {}
    facts.pop("runs", None)
    reports = [(f"reports/{name}.html", title) for name, title in STUDY.items()]
    page = (
        Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .get_template("index.html.j2")
        .render(
            params=params.model_dump(),
            facts=dict(_flat({name: value for name, value in facts.items() if name != "params"})),
            certificate=exactness.read_certificate(folder),
            reports=[(link, title, (folder / link).exists()) for link, title in reports],
            **_measured_part(params, folder),
        )
    )
    _write_at_once(folder / "index.html", page)
    return folder / "index.html"


def _measured_part(params: StudyParams, folder: Path) -> dict[str, Any]:
    """What the index says about the results table; empty values while there is none."""
    if not (folder / "results.parquet").exists():
        return {"cards": [], "headline": None, "transformers": None, "failed": None, "num_failed": 0}
    rows = read_results(folder)
    headline = metrics.headline(metrics.speedups(rows), params)
    over_transformers = metrics.headline_setting(metrics.speedups_over_transformers(rows), params)
    failed = metrics.failures(rows)
    return {
        "cards": _cards(headline, params),
        "headline": tables.speedup_table(headline).to_html(index=False, border=0),
        "transformers": findings.finding_transformers(over_transformers) if len(over_transformers) else None,
        "failed": tables.failure_table(failed).to_html(index=False, border=0),
        "num_failed": len(failed),
    }


def _cards(headline: pd.DataFrame, params: StudyParams) -> list[dict[str, str]]:
    """For each temperature: speedup, time per token and acceptance of the first method of the params."""
    cards = []
    for line in headline[headline["method"] == params.methods[0]].itertuples():
        where = f"{METHOD_NAMES[line.method]}, γ = {line.num_draft_tokens}, T = {line.temperature:g}"
        value, _, interval = findings.with_interval(line).partition(" (")
        baseline = headline[(headline["method"] == metrics.BASELINE) & (headline["temperature"] == line.temperature)]
        without = f"{baseline['tpot_ms'].iloc[0]:.2f} ms without speculation" if len(baseline) else "no baseline"
        length = f"{line.mean_acceptance_length:.2f} tokens per target pass"
        for name, number, detail in (
            ("Speedup", value, interval.rstrip(")")),
            ("Time per output token", f"{line.tpot_ms:.2f} ms", without),
            ("Acceptance rate", f"{line.acceptance_rate:.2f}", length),
        ):
            cards.append({"name": name, "value": number, "detail": detail, "note": where})
    return cards


def _run_notebook(source: Path, folder: Path, values: dict[str, Any]) -> str | None:
    """Execute one notebook; returns what went wrong, or None."""
    import papermill
    from papermill.exceptions import PapermillException, PapermillExecutionError
    from traitlets.config import Config

    marker = _marker(folder, source.stem)
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
            config=Config(KernelManager={"transport_encryption": "auto"}),  # else the kernel warns of plain TCP
        )
    except PapermillExecutionError as error:
        return f"failed: {error.ename}: {' '.join(str(error.evalue).split())}"
    except (PapermillException, RuntimeError) as error:
        return f"failed: {' '.join(str(error).split())}"
    return None if marker.exists() else "stopped before its last cell: its kernel died, perhaps for want of memory"


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


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _write_at_once(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    temporary.replace(path)
