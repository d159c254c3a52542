"""The page of a run and the overview of all runs: headline, what went wrong, where and how it was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from specdec_lib.analysis.headline import headline
from specdec_lib.config import StudyParams, load_params
from specdec_lib.hardware.catalog import price, usd_per_million_tokens
from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import GIB, temperature_name, with_interval
from specdec_lib.report.safe_html import render_template
from specdec_lib.report.show import table_html
from specdec_lib.report.tables import sweep as tables
from specdec_lib.study.table import read_results

CORRECTNESS = "01_correctness"
COMPARISON = "04_gpu_comparison"  # of several runs
CERTIFICATE = "exactness.json"
SPREAD = "not made: a certificate needs the whole target in one process, and this one is spread over several devices"
RANDOM = "does not apply: random weights, and an acceptance that is given, have no output to be exact about"
_FIRST_FACTS = ("device_name", "started", "ended", "commit", "benchmark_version", "versions")


def run_page(params: StudyParams, folder: Path, titles: dict[str, str]) -> str:
    """The page of a run, as HTML; an unfinished run has one too.

    Args:
        titles: for each report's file name, the text of a link to it.
    """
    facts = _facts(folder)
    measured = (folder / "results.parquet").exists()
    return render_template(
        "run.html.j2",
        params=params.model_dump(),
        facts={name: facts.get(name) for name in _FIRST_FACTS},
        more_facts=json.dumps({k: v for k, v in facts.items() if k not in (*_FIRST_FACTS, "params", "runs")}, indent=2),
        reports=[(f"reports/{name}.html", title, _state(params, folder, name)) for name, title in titles.items()],
        exactness=_exactness(folder, params),
        **(_measured(params, folder, read_results(folder)) if measured else {}),
    )


def overview_page(root: Path) -> str:
    """The page of all runs under `root` and `root/published`: a table with one row for each, and their comparisons."""
    folders = {path.parent for pattern in ("*", "published/*") for path in root.glob(f"{pattern}/index.html")}
    runs = [_run_summary(folder, root) for folder in sorted(folders) if folder.name != "published"]
    temperatures = sorted({temperature for run in runs for temperature in run["verdicts"]})
    pages = sorted(root.glob(f"**/{COMPARISON}.html")) if root.exists() else []
    comparisons = [page.relative_to(root).as_posix() for page in pages]
    return render_template("overview.html.j2", runs=runs, temperatures=temperatures, comparisons=comparisons)


def why_no_certificate(params: StudyParams) -> str | None:
    """Why a run of this study makes no certificate of exactness; None if it does."""
    return RANDOM if params.weights == "random" else SPREAD if params.tensor_parallel > 1 else None


def verdict(line: Any) -> str:
    """Whether speculation pays, in words: yes or no only if the whole interval says so."""
    if pd.isna(line.speedup_low):
        return "not measured" if pd.isna(line.speedup) else "unclear, too few prompts for an interval"
    if line.speedup_low > 1:
        return "yes"
    return "no, it is slower" if line.speedup_high < 1 else "unclear, the interval holds 1"


def _run_summary(folder: Path, root: Path) -> dict[str, Any]:
    """What the overview says about one run; a run whose params or price are unknown today has no numbers."""
    name, facts = folder.relative_to(root).as_posix(), _facts(folder)
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
    failed = len(tables.trouble_table(rows))
    return summary | {"params": params, "verdicts": verdicts, "failed": failed, "exactness": _exactness(folder, params)}


def _verdict(line: Any) -> dict[str, str]:
    """Whether the params' first method pays, with the speedup that says so."""
    answer = verdict(line)
    tone = "good" if answer == "yes" else "bad" if answer.startswith("no,") else ""
    speedup, what = with_interval(line), f"{label(line.method)}, γ = {line.num_draft_tokens}"
    return {"answer": answer.partition(",")[0], "tone": tone, "speedup": speedup, "what": what}


def _measured(params: StudyParams, folder: Path, rows: pd.DataFrame) -> dict[str, Any]:
    """What both pages say about the results table."""
    lines, troubles = headline(rows, params), tables.trouble_table(rows)
    first = lines[lines["method"] == params.methods[0]]
    return {
        "groups": [_group(line, lines, params, folder) for line in first.itertuples()],
        "headline": table_html(tables.headline_table(lines), "The headline setting"),
        "troubles": table_html(troubles, "What failed, was skipped or is not counted") if len(troubles) else None,
        "num_troubles": len(troubles),
    }


def _group(line: Any, lines: pd.DataFrame, params: StudyParams, folder: Path) -> dict[str, Any]:
    """The verdict and the cards of the params' first method at one temperature."""
    same = lines[(lines["method"] == AUTOREGRESSIVE) & (lines["temperature"] == line.temperature)]
    return {
        "title": temperature_name(line.temperature),
        "what": f"{label(line.method)}, γ = {line.num_draft_tokens}",
        "verdict": verdict(line),
        "cards": _cards(line, next(same.itertuples(), None), params, folder),
    }


def _cards(line: Any, baseline: Any, params: StudyParams, folder: Path) -> list[dict[str, str]]:
    latency, costs = _link(folder, "02_latency_sweep"), _link(folder, "03_cost_analysis")
    hourly = price(params.price).times(params.num_devices).usd_per_hour
    tpot, memory, cost = _in_words(line, hourly)
    theirs = (
        [f"{text} without speculation" for text in _in_words(baseline, hourly)] if baseline else ["no baseline"] * 3
    )
    speedup, _, interval = with_interval(line).partition(" (")
    rate, tokens = f"{line.acceptance_rate:.2f}", f"{line.mean_acceptance_length:.2f} tokens per target pass"
    if pd.isna(line.acceptance_rate):
        rate, tokens = "none", "replayed from the params" if params.accepted_per_step else "no draft was tested"
    return [
        _card("Speedup", speedup, interval.rstrip(")"), latency, "headline"),
        _card("Time per output token", tpot, theirs[0], latency, "headline"),
        _card("Acceptance rate", rate, tokens, latency, "which-drafted-tokens-survive"),
        _card("Peak memory", memory, theirs[1], latency, "memory"),
        _card("$ per million tokens", cost, f"{theirs[2]}, at ${hourly:g} an hour", costs, "headline"),
    ]


def _in_words(line: Any, usd_per_hour: float) -> list[str]:
    """Time per token, peak memory and cost of a line."""
    on_device = pd.notna(line.peak_memory_allocated_bytes)
    memory = line.peak_memory_allocated_bytes if on_device else line.process_peak_rss_bytes
    dollars = usd_per_million_tokens(line.tokens_per_second, usd_per_hour)
    return [f"{line.tpot_ms:.2f} ms", f"{memory / GIB:.2f} GiB", f"${dollars:#.3g}"]


def _card(name: str, value: str, detail: str, page: str, section: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail, "link": f"{page}#{section}" if page and section else page}


def _exactness(folder: Path, params: StudyParams) -> dict[str, str]:
    """The card of the exactness certificate."""
    name, link, path = "Exactness certificate", _link(folder, CORRECTNESS), folder / CERTIFICATE
    certificate = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "passed" not in certificate:
        return _card(name, "none", why_no_certificate(params) or "this run wrote no certificate", link)
    if not certificate["passed"]:
        return _card(name, "failed", "; ".join(certificate["failures"]), link) | {"tone": "bad"}
    tests = pd.DataFrame(certificate.get("tests", {}))
    bias = tests["detectable_bias"].max() if len(tests) else math.nan
    detail = f"{len(tests)} tests of sampled output; a bias above {bias:.2g} would have shown in any"
    return _card(name, "passed", detail, link) | {"tone": "good"}


def _state(params: StudyParams, folder: Path, name: str) -> str:
    """Whether a report is there; if not, why."""
    why_not = why_no_certificate(params) if name == CORRECTNESS else None
    return "there" if _link(folder, name) else why_not or "missing: this part did not run to its end"


def _link(folder: Path, name: str) -> str:
    """The link to a report; empty if there is none."""
    return f"reports/{name}.html" if (folder / "reports" / f"{name}.html").exists() else ""


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return facts | {"versions": ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())}
