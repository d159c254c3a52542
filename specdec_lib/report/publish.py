"""Keep a run: its data and pages under `outputs/published/<gpu>`, and its headline in the README."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

import pandas as pd

from specdec_lib.analysis.acceptance import FILE as ACCEPTANCE
from specdec_lib.analysis.headline import headline
from specdec_lib.analysis.sweep.categories import category_lines
from specdec_lib.analysis.verdicts import prompts_used
from specdec_lib.config import StudyParams
from specdec_lib.exactness.certificate import FILE as CERTIFICATE
from specdec_lib.machine.files import write_atomically
from specdec_lib.params_files import is_prompt_file, load_params
from specdec_lib.report.captions.categories import finding_category
from specdec_lib.report.figures.categories import category_heatmap
from specdec_lib.report.index import overview_page
from specdec_lib.report.notebooks import ROOT
from specdec_lib.report.pages import render_reports
from specdec_lib.report.run_page import why_no_certificate
from specdec_lib.report.show import png
from specdec_lib.report.tables.readable import UNDEFINED
from specdec_lib.report.tables.sweep import NUMBERS, method_table
from specdec_lib.study.rows.table import read_results

README = ROOT / "README.md"
NEEDED = ("results.parquet", "environment.json", "step_costs.json")
KEPT = (*NEEDED, CERTIFICATE, ACCEPTANCE, "calibration.json", "peer_rows.parquet")
TEXTS = "transcripts.json"  # kept where the prompts are ours to publish
FIGURE = "speedup.png"
BLOCK = re.compile(r"(<!-- headline ([\w -]+) -->).*?(<!-- end of headline -->)", re.DOTALL)


def publish(params: StudyParams, folder: Path, published: Path) -> Path:
    """Copy the data of a run to `published`, write its pages there anew, and update the README's headline.

    All of it is made next to `published` first: a run that cannot be published leaves what was published before.

    Raises:
        ValueError: the run is not whole, has failed cells, or has no certificate that passes; names the remedy.
        RuntimeError: a page cannot be written.
    """
    _check(params, folder)
    rows = read_results(folder)
    published.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=published.parent.parent) as work:
        copy = Path(work) / published.name
        copy.mkdir()
        for name in (*KEPT, *([TEXTS] if not is_prompt_file(params.prompt_set) else [])):
            if (folder / name).exists():
                shutil.copy(folder / name, copy)
        for name in ("environment.json", CERTIFICATE):
            _without_paths(copy / name)
        render_reports(copy)
        shutil.rmtree(copy / "notebooks")
        (copy / "run.lock").unlink(missing_ok=True)
        (copy / FIGURE).write_bytes(png(category_heatmap(category_lines(rows, params)), 160))
        shutil.rmtree(published, ignore_errors=True)
        copy.rename(published)
    for root in (published.parent, published.parent.parent):
        write_atomically(root / "index.html", overview_page(root))
    write_atomically(README, with_headline(README.read_text(encoding="utf-8"), published.parent))
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


def _without_paths(file: Path) -> None:
    """Keep only the names of prompt files and models in the params that a run noted: paths say nothing to others."""
    if not file.exists():
        return
    facts = json.loads(file.read_text(encoding="utf-8"))
    for each in (facts, facts.get("environment", {}), *facts.get("runs", {}).values()):
        kept = each.get("params", {})
        places = {key: str(kept.get(key) or "") for key in ("prompt_set", "target", "draft")}
        if named := {
            key: Path(place).name
            for key, place in places.items()
            if Path(place).is_absolute() or (key == "prompt_set" and is_prompt_file(place))
        }:
            kept |= named
            write_atomically(file, json.dumps(facts, separators=(",", ":")) + "\n")


def with_headline(text: str, published: Path) -> str:
    """The README's `text`, its headline written anew from those published studies that its mark names.

    Raises:
        ValueError: the text lacks the marks.
    """
    if not (block := BLOCK.search(text)):
        raise ValueError(
            "README.md lacks the marks <!-- headline STUDY STUDY --> and <!-- end of headline -->: put them where the "
            "headline belongs"
        )
    folders = [published / name for name in block[2].split() if (published / name / "results.parquet").exists()]
    parts = [_markdown(headline_of_all(folders)), *map(_by_category, folders)]
    return BLOCK.sub(lambda found: "\n".join([found[1], "\n\n".join(parts), found[3]]), text)


def headline_of_all(folders: list[Path]) -> pd.DataFrame:
    """A line per method, with its speedup in each published study at each temperature."""
    made = pd.DataFrame({"method": pd.Series(dtype=str)})
    for folder in folders:
        params = load_params(folder)
        table = method_table(headline(read_results(folder), params)).set_index("method")
        speedups = table[[name for name in table if name.startswith(NUMBERS[0])]]
        named = speedups.rename(
            columns=lambda name, prompts=Path(params.prompt_set).stem: name.replace(NUMBERS[0], prompts)
        )
        made = made.merge(named.reset_index(), on="method", how="outer", sort=False)
    return made.fillna(UNDEFINED)


def _by_category(folder: Path) -> str:
    params, rows = load_params(folder), read_results(folder)
    used, finding = prompts_used(rows, params), finding_category(category_lines(rows, params))
    return f"On `{Path(params.prompt_set).stem}`, {len(used)} prompts: {finding}"


def _markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
