"""The page of a run and the overview of all runs: headline cards, what went wrong, where and how it was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from specdec_lib.analysis import cost, metrics
from specdec_lib.analysis.headline import headline as headline_of
from specdec_lib.analysis.headline import headline_over_transformers
from specdec_lib.config import StudyParams, params_of_run
from specdec_lib.hardware.catalog import price
from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions import phrases
from specdec_lib.report.captions import sweep as findings
from specdec_lib.report.captions.phrases import GIB, temperature_name
from specdec_lib.report.facts_table import visible
from specdec_lib.report.show import table_html
from specdec_lib.report.tables import sweep as tables
from specdec_lib.study.table import read_results

TEMPLATES = Path(__file__).resolve().parent / "templates"
Card = dict[str, str]
CORRECTNESS = "01_correctness"
SPREAD = "not made: a certificate needs the whole target in one process, and this one is spread over several devices"
RANDOM = "does not apply: random weights, and an acceptance that is given, have no output to be exact about"
_FIRST_FACTS = ["device_name", "pair", "dtype", "prompt_set", "started", "ended", "commit", "benchmark_version"]


def run_page(params: StudyParams, folder: Path, titles: dict[str, str]) -> str:
    """The page of a run, as HTML in which all text is escaped.

    Args:
        titles: for each report's file name, what a link to it says.
    """
    facts = _facts(folder)
    flat = dict(_flat({"pair": params.pair, "dtype": params.dtype, "prompt_set": params.prompt_set} | facts))
    reports = {name: (folder / "reports" / f"{name}.html").exists() for name in titles}
    first = {name: flat.pop(name, None) for name in _FIRST_FACTS}
    first["versions"] = ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())
    return _render(
        "run.html.j2",
        params=params.model_dump(),
        facts=first,
        more_facts={name: value for name, value in flat.items() if not name.startswith("versions ")},
        reports=[(f"reports/{name}.html", title, _state(params, name, reports)) for name, title in titles.items()],
        exactness=_exactness(folder, reports, params),
        **_measured(params, folder, reports),
    )


def overview_page(root: Path) -> str:
    """The page of all runs under `root` and `root/published`."""
    folders = sorted({path.parent for pattern in ("*", "published/*") for path in root.glob(f"{pattern}/index.html")})
    folders = [folder for folder in folders if folder.name != "published"]
    return _render("overview.html.j2", runs=[_run_summary(folder, root) for folder in folders])


def write_page(path: Path, text: str) -> Path:
    """Write a page at once; what UTF-8 cannot hold becomes a question mark."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    temporary.replace(path)
    return path


def verdict(line: Any) -> str:
    """Whether speculation pays, in words: only if all of the interval says so."""
    if pd.isna(line.speedup):
        return "not measured"
    if pd.isna(line.speedup_low):
        return "unclear, too few prompts for an interval"
    if line.speedup_low > 1:
        return "yes"
    return "no, it is slower" if line.speedup_high < 1 else "unclear, the interval holds 1"


def _measured(params: StudyParams, folder: Path, reports: dict[str, bool]) -> dict[str, Any]:
    """What the page says about the results table; empty values while there is none."""
    if not (folder / "results.parquet").exists():
        return {"groups": [], "headline": None, "transformers": None, "troubles": None, "num_troubles": 0}
    rows = read_results(folder)
    headline, over_transformers = headline_of(rows, params), headline_over_transformers(rows, params)
    troubles = tables.trouble_table(rows)
    return {
        "groups": _groups(headline, params, reports),
        "headline": table_html(tables.speedup_table(headline), "The headline setting"),
        "transformers": findings.finding_transformers(over_transformers) if len(over_transformers) else None,
        "troubles": table_html(troubles, "What failed, was skipped or is kept out") if len(troubles) else None,
        "num_troubles": len(troubles),
        "counts": f"{rows['cell_id'].nunique()} cells, {len(rows)} rows",
    }


def _groups(headline: pd.DataFrame, params: StudyParams, reports: dict[str, bool]) -> list[dict[str, Any]]:
    """For each temperature the answer in a word, and the cards of the params' first method."""
    groups = []
    for line in headline[headline["method"] == params.methods[0]].itertuples():
        here = headline[headline["temperature"] == line.temperature]
        baseline = next(here[here["method"] == AUTOREGRESSIVE].itertuples(), None)
        group = {
            "title": temperature_name(line.temperature),
            "what": f"{label(line.method)}, γ = {line.num_draft_tokens}",
            "verdict": verdict(line),
            "cards": [
                card | {"link": card["link"] if reports.get(card["link"].split("/")[1].split(".")[0]) else ""}
                for card in _cards(line, baseline, here, params)
            ],
        }
        groups.append(group)
    return groups


def _cards(line: Any, baseline: Any, here: pd.DataFrame, params: StudyParams) -> list[Card]:
    value, _, interval = phrases.with_interval(line).partition(" (")
    latency = "reports/02_latency_sweep.html"
    given = pd.isna(line.acceptance_rate)
    cards = [
        _card("Speedup", value, interval.rstrip(")"), f"{latency}#headline"),
        _card(
            "Time per output token",
            f"{line.tpot_ms:.2f} ms",
            f"{baseline.tpot_ms:.2f} ms without speculation" if baseline else "no baseline",
            f"{latency}#headline",
        ),
        _card(
            "Acceptance rate",
            "given" if given else f"{line.acceptance_rate:.2f}",
            "replayed, not measured" if given else f"{line.mean_acceptance_length:.2f} tokens per target pass",
            f"{latency}#which-drafted-tokens-survive",
        ),
    ]
    column = metrics.memory_column(here)
    if pd.notna(memory := getattr(line, column)):
        without = f", {getattr(baseline, column) / GIB:.2f} GiB without" if baseline else ""
        place = "on the device" if column == "peak_memory_allocated_bytes" else "of the process"
        if params.tensor_parallel > 1:
            place = f"in all of the {params.tensor_parallel} processes together"
        cards.append(_card("Peak memory", f"{memory / GIB:.2f} GiB", f"{place}{without}", f"{latency}#memory"))
    hourly = price(params.price).times(params.num_devices)
    costs = cost.cost_table(here, hourly.usd_per_hour)
    dollars = dict(zip(costs["method"], costs["usd_per_million_tokens"], strict=True))
    if line.method in dollars:
        without = f"${dollars[AUTOREGRESSIVE]:#.3g} without, " if AUTOREGRESSIVE in dollars else ""
        detail = f"{without}at ${hourly.usd_per_hour:g} an hour"
        link = "reports/03_cost_analysis.html#headline"
        cards.append(_card("$ per million tokens", f"${dollars[line.method]:#.3g}", detail, link))
    return cards


def _card(name: str, value: str, detail: str, link: str) -> Card:
    return {"name": name, "value": value, "detail": detail, "link": link}


def _state(params: StudyParams, name: str, reports: dict[str, bool]) -> str:
    """Whether a report is there; if not, why."""
    if reports[name]:
        return "there"
    why_not = why_no_certificate(params) if name == CORRECTNESS else None
    return why_not or "missing: this part did not run to its end"


def why_no_certificate(params: StudyParams) -> str | None:
    """Why a run of this study makes no certificate of exactness; None if it does."""
    return RANDOM if params.weights == "random" else SPREAD if params.tensor_parallel > 1 else None


def _exactness(folder: Path, reports: dict[str, bool], params: StudyParams) -> Card:
    """The card of the exactness certificate, which is one only if the run wrote it."""
    path = folder / "exactness.json"
    certificate = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    link = f"reports/{CORRECTNESS}.html" if reports.get(CORRECTNESS) else ""
    if not (isinstance(certificate, dict) and isinstance(certificate.get("passed"), bool)):
        detail = why_no_certificate(params) or "this run wrote no certificate"
        return _card("Exactness certificate", "none", detail, link)
    tests, failures = certificate.get("tests", []), certificate.get("failures", [])
    if certificate["passed"]:
        bias = max((test["detectable_bias"] for test in tests), default=math.nan)
        detail = f"{len(tests)} tests of sampled output; a bias above {bias:.2g} would have shown in any"
        return _card("Exactness certificate", "passed", detail, link) | {"tone": "good"}
    return _card("Exactness certificate", "failed", "; ".join(failures), link) | {"tone": "bad"}


def _run_summary(folder: Path, root: Path) -> dict[str, Any]:
    """What the overview says about one run; one whose params or price are no longer known has no numbers."""
    facts, name = _facts(folder), folder.relative_to(root).as_posix()
    reports = {path.stem: True for path in (folder / "reports").glob("*.html")}
    summary: dict[str, Any] = {"home": f"{name}/", "name": name, "facts": facts}
    try:
        params = params_of_run(facts, source=f"{folder.name}/environment.json")
        rows = read_results(folder)
        groups = _groups(headline_of(rows, params), params, reports)
    except ValueError as error:
        return summary | {"problem": str(error)}
    return summary | {
        "setting": f"{params.pair}, {params.dtype}",
        "groups": groups,
        "exactness": _exactness(folder, reports, params),
        "num_troubles": len(tables.trouble_table(rows)),
    }


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in facts.keys() & {"started", "ended"}:
        facts[name] = str(facts[name]).replace("T", " ").replace("+00:00", " UTC")
    return facts


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            if name not in ("runs", "params", "source"):
                yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _render(template: str, **values: object) -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else "none" if value is None else value,
    )
    return environment.get_template(template).render(**values)
