"""Keep a run: its data and pages under `outputs/published/<gpu>`, and its headline in the README."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

import pandas as pd

from specdec_lib.analysis.batching import batch_gains
from specdec_lib.analysis.crossover import measured_crossovers
from specdec_lib.analysis.headline import along, headline, headline_over_transformers
from specdec_lib.analysis.metrics import speedups
from specdec_lib.analysis.prediction import predicted_speedups
from specdec_lib.analysis.step_table import read_step_costs
from specdec_lib.config import StudyParams
from specdec_lib.machine.files import write_atomically
from specdec_lib.report.captions import sweep as findings
from specdec_lib.report.figures.sweep import speedup_figure
from specdec_lib.report.index import CERTIFICATE, overview_page
from specdec_lib.report.notebooks import ROOT
from specdec_lib.report.pages import render_reports
from specdec_lib.report.run_page import why_no_certificate
from specdec_lib.report.tables.sweep import method_table
from specdec_lib.study.table import read_results

README = ROOT / "README.md"
NEEDED = ("results.parquet", "environment.json", "step_costs.json")
KEPT = (*NEEDED, CERTIFICATE, "calibration.json", "transcripts.json", "peer_rows.parquet")


def publish(params: StudyParams, folder: Path, published: Path) -> Path:
    """Copy the data of a run to `published`, write its pages there anew, and update the README's headline.

    All of it is made next to `published` first: a run that cannot be published leaves what was published before.

    Raises:
        ValueError: the run is not whole, has failed cells, or has no certificate that passes; names the remedy.
        RuntimeError: a page cannot be written.
    """
    _check(params, folder)
    rows = read_results(folder)
    readme = with_headline(README.read_text(encoding="utf-8"), params, rows)
    published.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=published.parent.parent) as work:
        copy = Path(work) / published.name
        copy.mkdir()
        for name in KEPT:
            if (folder / name).exists():
                shutil.copy(folder / name, copy)
        render_reports(copy)
        shutil.rmtree(copy / "notebooks")
        (copy / "run.lock").unlink(missing_ok=True)
        by_gamma = speedups(along(rows, params, "num_draft_tokens"))
        predicted = predicted_speedups(by_gamma, read_step_costs(folder), rows)
        speedup_figure(by_gamma, "num_draft_tokens", predicted).savefig(copy / "speedup.png", dpi=160)
        shutil.rmtree(published, ignore_errors=True)
        copy.rename(published)
    for root in (published.parent, published.parent.parent):
        write_atomically(root / "index.html", overview_page(root))
    write_atomically(README, readme)
    return published


def _check(params: StudyParams, folder: Path) -> None:
    """Raise ValueError if cells failed, data is missing, or the certificate of exactness does not pass."""
    if (read_results(folder)["status"] == "failed").any():
        raise ValueError(f"{folder} has failed cells: run it again before publishing it")
    for name in (*NEEDED, *(["calibration.json"] if params.tensor_parallel == 1 else [])):
        if not (folder / name).exists():
            raise ValueError(f"{folder / name} is missing: run the study to its end before publishing it")
    if why_no_certificate(params):
        return
    path = folder / CERTIFICATE
    certificate = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not certificate.get("passed"):
        problem = "; ".join(certificate.get("failures", [])) or "it is missing"
        raise ValueError(f"{path} does not pass ({problem}): run the study until it passes, then publish")


def with_headline(text: str, params: StudyParams, rows: pd.DataFrame) -> str:
    """The README's `text` with everything between the two headline marks written anew from the table.

    Raises:
        ValueError: the text lacks the marks.
    """
    begin, end = f"<!-- headline {params.gpu} -->", "<!-- end of headline -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the README lacks the marks {begin} and {end}: put them where the headline belongs")
    by_batch = along(rows, params, "batch_size")
    parts = [
        _markdown(method_table(headline(rows, params))),
        findings.finding_transformers(headline_over_transformers(rows, params)),
        findings.finding_crossover(measured_crossovers(by_batch, params.gpu, params.seed)),
        findings.finding_batches(batch_gains(speedups(by_batch))),
    ]
    return pattern.sub(lambda _: "\n".join([begin, "\n\n".join(parts), end]), text)


def _markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
