"""The page of a run: does it pay, what to set, how exact, how fair, how far to trust it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from specdec_lib.analysis.advice import advice_of_run
from specdec_lib.analysis.headline import along, at_headline, every_batch, headline, headline_over_transformers
from specdec_lib.analysis.metrics import speedups
from specdec_lib.analysis.sweep.categories import category_lines
from specdec_lib.analysis.sweep.passes import tokens_per_pass
from specdec_lib.analysis.sweep.tradeoff import tradeoff_lines
from specdec_lib.analysis.verdicts import Verdict, exclusions, prompts_used, verdicts
from specdec_lib.config import StudyParams
from specdec_lib.exactness.certificate import read_certificate
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.peers.lines import finding_against_peers, peer_lines
from specdec_lib.peers.rows import FILE as PEER_ROWS
from specdec_lib.peers.rows import read_peers
from specdec_lib.report.captions.advice import finding_advice
from specdec_lib.report.captions.categories import finding_category
from specdec_lib.report.captions.sweep import finding_transformers
from specdec_lib.report.captions.verdict import answer, best_sentence, evidence_sentence, verdict_sentence
from specdec_lib.report.figures.categories import category_heatmap
from specdec_lib.report.figures.passes import passes_histogram
from specdec_lib.report.figures.sweep import speedup_figure
from specdec_lib.report.figures.tradeoff import tradeoff_figure
from specdec_lib.report.safe_html import render_template
from specdec_lib.report.show import picture_of, table_html
from specdec_lib.report.tables.advice import advice_table
from specdec_lib.report.tables.exactness import four_checks
from specdec_lib.report.tables.sweep import method_table, trouble_table
from specdec_lib.study.rows.table import FILE, read_results
from specdec_lib.study.run_folder import read_environment

CORRECTNESS, ADVISOR = "01_correctness", "06_advisor"
OF_TEXT = (CORRECTNESS, ADVISOR)  # these need texts of the whole target in one process
SPREAD = "not made: it needs the whole target in one process, and this one is spread over several devices"
RANDOM = "does not apply: random weights, and an acceptance that is given, have no output to say anything about"
FIRST_FACTS = ("device_name", "started", "ended", "commit", "benchmark_version", "versions")
PEERS_APART = "Peers are timed next to ours, but at another time than this page's rows: compare on their own page."
MOST_NAMED = 30  # prompts
THUMBNAIL = 2.4  # width of a panel, in inches


class Glossary(NamedTuple):
    """A word of the page, and what it means."""

    word: str
    meaning: str


GLOSSARY = (
    Glossary("draft, target", "the small model that proposes tokens, and the large one that verifies them in one pass"),
    Glossary("γ", "draft tokens that are proposed in a step"),
    Glossary("speedup", "time per output token without speculation over that with it, on the same prompts"),
    Glossary("whole calls", "tokens per second of whole calls, prompt included, over those without speculation"),
    Glossary("batch", "prompts that are decoded together, each for a user of its own"),
    Glossary("drift", "the time per token without speculation changed by over 20 % within a block of paired calls"),
    Glossary("acceptance", "the share of tested draft tokens that the target accepts"),
    Glossary("tokens per pass", "tokens that one pass of the target yields: accepted ones and one of its own"),
    Glossary("TPOT", "time per output token, after the first"),
    Glossary("T", "temperature; at 0 (greedy) the most likely token is always taken"),
    Glossary("interval", "95 % BCa bootstrap over prompts"),
)


def run_page(params: StudyParams, folder: Path, titles: dict[str, str]) -> str:
    """The page of a run, as HTML; an unfinished run has one too.

    Args:
        titles: for each report's file name, the text of a link to it.
    """
    facts = read_environment(folder)
    first = min((run["started"] for run in facts.get("runs", {}).values() if run.get("started")), default=None)
    shown = facts | {
        "started": first or facts.get("started"),
        "versions": ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items()),
    }
    hidden = {name: value for name, value in facts.items() if name not in (*FIRST_FACTS, "params", "runs")}
    return render_template(
        "run.html.j2",
        params=params.model_dump(),
        facts={name: shown.get(name) for name in FIRST_FACTS},
        complete=facts.get("complete", True),
        more_facts=json.dumps(hidden, indent=2),
        reports=[(f"reports/{name}.html", title, report_state(params, folder, name)) for name, title in titles.items()],
        exactness=_exactness(folder, params),
        peers=_peers(folder),
        advice=_advice(params, folder),
        glossary=GLOSSARY,
        **(_measured(params, read_results(folder)) if (folder / FILE).exists() else {}),
    )


def why_no_certificate(params: StudyParams) -> str | None:
    """Why a run of this study makes no certificate of exactness; None if it does."""
    return RANDOM if params.weights == "random" else SPREAD if params.tensor_parallel > 1 else None


def report_state(params: StudyParams, folder: Path, name: str) -> str:
    """Whether a report is there; if not, why."""
    why_not = why_no_certificate(params) if name in OF_TEXT else None
    there = (folder / "reports" / f"{name}.html").exists()
    return "there" if there else why_not or "missing: this part did not run to its end"


def _measured(params: StudyParams, rows: pd.DataFrame) -> dict[str, Any]:
    """What the page says about the results table."""
    lines, troubles, used = headline(rows, params), trouble_table(rows), prompts_used(rows, params)
    return {
        "answers": [_answer(verdict) for verdict in verdicts(rows, params)],
        "pictures": _pictures(rows, params),
        "categories": finding_category(category_lines(rows, params)),
        "headline": table_html(method_table(lines), "The headline setting"),
        "prefill": _prefill(lines),
        "fairness": finding_transformers(headline_over_transformers(rows, params)),
        "rows": len(rows),
        "excluded": exclusions(rows),
        "prompts": used[:MOST_NAMED],
        "num_prompts": len(used),
        "all_prompts": params.num_prompts,
        "troubles": table_html(troubles, "What failed, was skipped or is not counted") if len(troubles) else None,
    }


def _answer(verdict: Verdict) -> dict[str, str]:
    return {
        "word": answer(verdict.line),
        "sentence": verdict_sentence(verdict),
        "evidence": evidence_sentence(verdict),
        "best": best_sentence(verdict),
        "command": verdict.command,
    }


def _pictures(rows: pd.DataFrame, params: StudyParams) -> list[dict[str, str]]:
    """Four small figures."""
    lines = speedups(rows)
    made = [
        speedup_figure(along(lines, params, "batch_size"), "batch_size", width=THUMBNAIL),
        category_heatmap(category_lines(rows, params)),
        tradeoff_figure(tradeoff_lines(every_batch(lines, params)), width=THUMBNAIL),
        passes_histogram(tokens_per_pass(at_headline(rows, params))),
    ]
    return [picture_of(figure) for figure in made]


def _prefill(lines: pd.DataFrame) -> float | None:
    """Reading the prompts' share of a call without speculation, the mean over temperatures."""
    share = lines.loc[lines["method"] == AUTOREGRESSIVE, "prefill_share"].mean()
    return None if pd.isna(share) else float(share)


def _exactness(folder: Path, params: StudyParams) -> dict[str, Any]:
    """The four checks of the certificate, or why there is none."""
    certificate = read_certificate(folder)
    if certificate is None:
        return {"why_none": why_no_certificate(params) or "this run wrote no certificate"}
    return {"failures": certificate.failures(), "checks": four_checks(certificate).to_dict("records")}


def _peers(folder: Path) -> str | None:
    """The best way of another engine next to ours; None where none was timed."""
    if not (folder / PEER_ROWS).exists():
        return None
    return f"{finding_against_peers(peer_lines(read_peers(folder)))} {PEERS_APART}"


def _advice(params: StudyParams, folder: Path) -> dict[str, str] | None:
    """What to set at the headline's batch size and shortest context; None for a run without a profile."""
    try:
        advised = advice_of_run(params, folder)
    except ValueError:
        return None
    here = advised[advised["batch_size"] == params.batch_sizes[0]]
    here = here[here["context_tokens"] == here["context_tokens"].min()]
    return {"finding": finding_advice(advised), "table": table_html(advice_table(here), "What to set", folded=True)}
