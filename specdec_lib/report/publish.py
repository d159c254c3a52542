"""Keep a run: its table and reports under `outputs/published/<gpu>`, and its headline in the README."""

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
from specdec_lib.exactness import certificate as exactness
from specdec_lib.report.captions import sweep as findings
from specdec_lib.report.figures import sweep as plots
from specdec_lib.report.index import CORRECTNESS, overview_page, why_no_certificate, write_page
from specdec_lib.report.pages import ROOT, STUDY
from specdec_lib.report.tables import sweep as tables
from specdec_lib.study.table import read_results

README = ROOT / "README.md"
KEPT = ("results.parquet", "environment.json", "step_costs.json", "index.html", "reports")
OF_ONE_DEVICE = "calibration.json"  # which a target that is spread over several has not
OF_PEERS = ("peers.parquet", "peer_rows.parquet")  # where the run was also compared with other engines


def publish(params: StudyParams, folder: Path, published: Path) -> Path:
    """Copy what readers need from a run's `folder` to `published`, draw the headline figure, and update the README.

    Everything is checked and made first: a run that cannot be published leaves what was published before.

    Raises:
        ValueError: the run is not whole, has cells that failed or a certificate that does not pass; names the remedy.
    """
    rows = read_results(folder)
    if (rows["status"] == "failed").any():
        raise ValueError(f"{folder} has failed cells: run it again before publishing it")
    _check_certificate(params, folder)
    sources = _sources(params, folder)
    readme = with_headline(README.read_text(encoding="utf-8"), params, rows)
    published.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=published.parent.parent) as work:  # gone again, whatever fails
        beside = Path(work) / published.name
        beside.mkdir()
        for source in sources:
            (shutil.copytree if source.is_dir() else shutil.copy)(source, beside / source.name)
        by_gamma = speedups(along(rows, params, "num_draft_tokens"))
        predicted = predicted_speedups(by_gamma, read_step_costs(folder), rows)
        plots.speedup_figure(by_gamma, "num_draft_tokens", predicted).savefig(beside / "speedup.png", dpi=160)
        shutil.rmtree(published, ignore_errors=True)
        beside.rename(published)
    for root in (published.parent, published.parent.parent):
        write_page(root / "index.html", overview_page(root))
    README.write_text(readme, encoding="utf-8")
    return published


def _check_certificate(params: StudyParams, folder: Path) -> None:
    """Refuse a run whose certificate of exactness does not pass, or that lacks one without a reason.

    Raises:
        ValueError: with what failed.
    """
    if why_no_certificate(params):
        return
    path = folder / exactness.FILE
    certificate = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not certificate.get("passed"):
        said = "; ".join(certificate.get("failures", [])) or "it is missing"
        raise ValueError(f"{path} is no certificate of exactness ({said}): run the study until it passes, then publish")


def _sources(params: StudyParams, folder: Path) -> list[Path]:
    """What is kept of a run.

    Raises:
        ValueError: some of it is missing.
    """
    certificate = [] if why_no_certificate(params) else [exactness.FILE]
    calibration = [OF_ONE_DEVICE] if params.tensor_parallel == 1 else []
    needed = [folder / name for name in (*KEPT, *certificate, *calibration)]
    reports = [folder / "reports" / f"{name}.html" for name in STUDY if name != CORRECTNESS or certificate]
    for source in (*needed, *reports):
        if not source.exists():
            raise ValueError(f"{source} is missing: run the study to its end before publishing it")
    return needed + [folder / name for name in OF_PEERS if (folder / name).exists()]


def with_headline(text: str, params: StudyParams, rows: pd.DataFrame) -> str:
    """The README's `text` with everything between the two headline marks made anew from the table."""
    begin, end = f"<!-- headline {params.gpu} -->", "<!-- end of headline -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the README lacks the marks {begin} and {end}: put them where the headline belongs")
    block = f"{begin}\n{headline_text(params, rows)}\n{end}"
    return pattern.sub(lambda _: block, text)


def headline_text(params: StudyParams, rows: pd.DataFrame) -> str:
    """The headline of a run in Markdown: a table and what else there is to know, all of it computed."""
    lines, by_batch = headline(rows, params), along(rows, params, "batch_size")
    crossovers = measured_crossovers(by_batch, params.gpu, params.seed)
    table = tables.speedup_table(lines).merge(tables.latency_table(lines)).drop(columns=["engine", "batch", "prompt"])
    columns = ["method", "γ", "T", "TPOT (ms)", "speedup (×)", "95 % interval", "prompt groups", "acceptance rate"]
    return "\n\n".join(
        [
            _markdown(table[[*columns, "tokens per target pass", "evidence"]]),
            findings.finding_transformers(headline_over_transformers(rows, params)),
            findings.finding_crossover(crossovers),
            findings.finding_batches(batch_gains(speedups(by_batch))),
        ]
    )


def _markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
