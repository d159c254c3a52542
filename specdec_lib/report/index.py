"""The overview of all runs: one row for each, with its verdicts, and links to their comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from specdec_lib.analysis.headline import headline
from specdec_lib.analysis.verdicts import exclusions
from specdec_lib.config import StudyParams
from specdec_lib.exactness.certificate import read_certificate
from specdec_lib.hardware.catalog import price
from specdec_lib.methods import label
from specdec_lib.params_files import load_params
from specdec_lib.report.captions.verdict import NO, YES, answer, speedup_text, why
from specdec_lib.report.run_page import why_no_certificate
from specdec_lib.report.safe_html import render_template
from specdec_lib.study.rows.table import read_results
from specdec_lib.study.run_folder import read_environment

COMPARISON = "04_gpu_comparison"  # of several runs
TONES = {YES: "good", NO: "bad"}


def overview_page(root: Path) -> str:
    """The page of all runs under `root` and `root/published`: a table with one row for each, and their comparisons."""
    folders = {path.parent for pattern in ("*", "published/*") for path in root.glob(f"{pattern}/index.html")}
    runs = [_run_summary(folder, root) for folder in sorted(folders) if folder.name != "published"]
    temperatures = sorted({temperature for run in runs for temperature in run["verdicts"]})
    pages = sorted(root.glob(f"**/{COMPARISON}.html")) if root.exists() else []
    comparisons = [page.relative_to(root).as_posix() for page in pages]
    return render_template("overview.html.j2", runs=runs, temperatures=temperatures, comparisons=comparisons)


def _run_summary(folder: Path, root: Path) -> dict[str, Any]:
    """What the overview says about one run; a run whose params or price are unknown today has no numbers."""
    name, facts = folder.relative_to(root).as_posix(), read_environment(folder)
    date = str(facts.get("ended") or facts.get("started") or "")[:10]
    summary: dict[str, Any] = {"home": f"{name}/", "name": name, "facts": facts, "date": date, "verdicts": {}}
    try:
        params = load_params(folder)
        price(params.price)
        rows = read_results(folder)
    except ValueError as error:
        return summary | {"problem": str(error)}
    lines = headline(rows, params)
    verdicts = {line.temperature: _verdict(line) for line in lines[lines["method"] == params.methods[0]].itertuples()}
    excluded, exactness = sum(exclusions(rows).values()), _exactness(folder, params)
    return summary | {"params": params, "verdicts": verdicts, "excluded": excluded, "exactness": exactness}


def _verdict(line: Any) -> dict[str, str]:
    """Whether the params' first method pays, with the speedup that says so."""
    whole = f"whole calls {speedup_text(line, 'e2e_speedup')}, " if pd.notna(line.e2e_speedup) else ""
    what = f"{whole}{label(line.method)}, γ = {line.num_draft_tokens}, batch {line.batch_size}, n = {line.num_prompts}"
    said = f"{answer(line)}{why(line)}"
    return {"answer": said, "tone": TONES.get(answer(line), ""), "speedup": speedup_text(line), "what": what}


def _exactness(folder: Path, params: StudyParams) -> dict[str, str]:
    """The outcome of the certificate in a word."""
    certificate = read_certificate(folder)
    if certificate is None:
        return {"value": "does not apply" if why_no_certificate(params) else "none"}
    return {"value": "failed", "tone": "bad"} if certificate.failures() else {"value": "passed", "tone": "good"}
