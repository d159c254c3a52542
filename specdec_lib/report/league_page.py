"""The league table as a page in Markdown, the answer first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from specdec_lib.exactness.certificate import FALSE_ALARM, POWER
from specdec_lib.exactness.league.verdict_names import BIASED, EXACT, GREEDY_ONLY, NOT_TESTED
from specdec_lib.report.notebooks import ROOT
from specdec_lib.report.safe_html import TEMPLATES

PUBLISHED = ROOT / "outputs" / "published" / "league"
REPRODUCED = "huggingface/transformers#47932"


def read_league(published: Path = PUBLISHED) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lines and the greedy texts that are published; both empty if there are none."""
    paths = published / "league.csv", published / "greedy.csv"
    if not paths[0].exists():
        return pd.DataFrame(), pd.DataFrame()
    return pd.read_csv(paths[0], keep_default_na=False, na_values=[""]), pd.read_csv(
        paths[1], keep_default_na=False, na_values=[""]
    )


def league_page(table: pd.DataFrame, greedy: pd.DataFrame) -> str:
    """The page; `table` and `greedy` as of `league_table` and `greedy_table`."""
    columns = (
        "manual",
        "detectable_bias",
        "bias",
        "bias_low",
        "bias_high",
        "position",
        "towards",
        "report",
        "example",
        "reason",
    )
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *columns])))
    engines, twins = table[table["kind"] == "engine"], table[table["kind"] == "twin"]
    dates = table["date"].dropna()
    environment = Environment(loader=FileSystemLoader(TEMPLATES), keep_trailing_newline=True)  # noqa: S701 - no HTML
    return environment.get_template("league.md.j2").render(
        dates=" to ".join(sorted({dates.min(), dates.max()})) if len(dates) else "no day yet",
        answer=_markdown(answers(table)),
        power=f"{POWER:g}",
        engines=len(engines),
        tested=int(engines["verdict"].isin([EXACT, BIASED]).sum()),
        false_alarm=f"{FALSE_ALARM:g}",
        caught=int((twins["verdict"] == BIASED).sum()),
        twins=len(twins),
        reproduced=_reproduced(engines),
        biased=_markdown(_biased(engines)),
        greedy=_markdown(_greedy(greedy)),
        manuals=_markdown(_manuals(engines)),
        lines=_markdown(_lines(engines)),
        bugs=_markdown(_twins(twins)),
    )


def _reproduced(engines: pd.DataFrame) -> str:
    """What became of the fault that transformers shipped, by version and drafter; empty if it was not tried."""
    rows = engines[(engines["report"] == REPRODUCED) & engines["verdict"].isin([EXACT, BIASED])]
    lines = [
        f"- {version}, {method}: {_of(each)}."
        for (version, method), each in rows.groupby(["version", "method"], sort=False)
    ]
    about = (
        f"{REPRODUCED}: drafters reported a distribution that they had not sampled from. MTP and DFlash\n"
        "reported logits before top-k and top-p; the single-position drafter takes the likeliest token and reports\n"
        "its softmax. MTP and DFlash draft for our target here with random layers. Of the single-position drafter the\n"
        "code is tested, with stand-ins for Gemma 4's models."
    )
    return "\n".join([about, "", *lines]) if lines else ""


def _of(rows: pd.DataFrame) -> str:
    biased = rows[rows["verdict"] == BIASED]
    if biased.empty:
        return f"exact so far (a bias of {rows['detectable_bias'].min():.2f} would have been seen)"
    where = [
        f"γ {line.num_draft_tokens}{f', top-k {line.top_k}' if line.top_k else ''} by {line.bias:.2f}"
        for line in biased.itertuples()
    ]
    return f"biased at {'; '.join(where)}"


def answers(table: pd.DataFrame) -> pd.DataFrame:
    """A line per engine: what to sample with, what not, and what is not known; empty without lines."""
    if table.empty:
        return table
    engines = table[table["kind"] == "engine"]
    lines = []
    for subject, rows in engines.groupby("subject", sort=False):
        said: dict[str, list[str]] = {EXACT: [], BIASED: [], GREEDY_ONLY: [], NOT_TESTED: []}
        for way in ways_of(rows):
            said[way["verdict"]].append(way["text"])
        version = rows["version"].dropna()
        lines.append(
            {
                "engine": subject,
                "version": version.iloc[-1] if len(version) else "–",
                "exact so far": "; ".join(said[EXACT]) or "–",
                "biased: do not sample with": "; ".join(said[BIASED]) or "–",
                "not known": "; ".join(said[GREEDY_ONLY] + said[NOT_TESTED]) or "–",
            }
        )
    return pd.DataFrame(lines)


def ways_of(rows: pd.DataFrame) -> Iterator[dict[str, str]]:
    """The verdict of each way of an engine over its lines, and how a reader sees it."""
    for (method, rule, setting), each in rows.groupby(["method", "rule", "setting"], sort=False):
        name = "no draft" if method == "none" else f"{method}" + (f" ({rule} rule)" if rule == "block" else "")
        name += "" if setting == "default" else f", {setting}"
        verdicts, tested = set(each["verdict"]), each[each["verdict"].isin([EXACT, BIASED])]
        if BIASED in verdicts:
            worst = each.loc[each["bias"].idxmax()]
            many = f"{(each['verdict'] == BIASED).sum()} of {len(each)} settings, up to {worst['bias']:.2f}"
            yield {"verdict": BIASED, "text": f"{name} [{many}]"}
        elif EXACT in verdicts:
            least = tested["detectable_bias"].min()
            yield {"verdict": EXACT, "text": f"{name} [< {least:.2f}]"}
        else:
            verdict = each["verdict"].iloc[0]
            yield {"verdict": verdict, "text": f"{name} [{verdict}]"}


def _markdown(table: pd.DataFrame) -> str:
    if table.empty:
        return "None."
    shown = table.astype(object).where(table.notna(), "–").astype(str).map(lambda text: text.replace("|", "/"))
    rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _setting(rows: pd.DataFrame) -> pd.DataFrame:
    """What a line is, in few columns."""
    filters = [
        f"{t:g}" + (f", top-k {k}" if k else "") + (f", top-p {p:g}" if p < 1 else "")
        for t, k, p in zip(rows["temperature"], rows["top_k"], rows["top_p"], strict=True)
    ]
    way = [f"{m}, {r}" if m != "none" else "no draft" for m, r in zip(rows["method"], rows["rule"], strict=True)]
    columns = {"engine": rows["subject"], "method, rule": way, "setting": rows["setting"]}
    return pd.DataFrame({**columns, "γ": rows["num_draft_tokens"], "T": filters}, index=rows.index)


def _biased(engines: pd.DataFrame) -> pd.DataFrame:
    rows = engines[engines["verdict"] == BIASED]
    if rows.empty:
        return rows
    size = [
        f"{b:.3f} ({low:.3f} to {high:.3f})"
        for b, low, high in zip(rows["bias"], rows["bias_low"], rows["bias_high"], strict=True)
    ]
    more = {"bias": size, "position": rows["position"].astype(int), "towards": rows["towards"]}
    return _setting(rows).assign(**more, report=rows["report"], example=rows["example"])


def _greedy(greedy: pd.DataFrame) -> pd.DataFrame:
    if greedy.empty:
        return greedy
    wanted = [
        "subject",
        "method",
        "rule",
        "setting",
        "dtype",
        "texts",
        "equal_own",
        "equal_transformers",
        "explained",
        "reason",
    ]
    shown = greedy.reindex(columns=wanted)
    for name in ("texts", "equal_own", "equal_transformers", "explained"):
        shown[name] = [f"{value:.0f}" if pd.notna(value) else None for value in shown[name]]
    names = {"subject": "engine", "equal_own": "equal: own baseline", "equal_transformers": "equal: transformers"}
    return shown.rename(columns=names | {"explained": "near-ties", "reason": "why there are none"})


def _manuals(engines: pd.DataFrame) -> pd.DataFrame:
    said = engines[engines["manual"].notna() & (engines["manual"] != "")]
    found = pd.DataFrame({"engine": said["subject"], "manual": said["manual"]})
    ways = [f"{method}, {setting}" for method, setting in zip(said["method"], said["setting"], strict=True)]
    return found.assign(way=ways)[["engine", "way", "manual"]].drop_duplicates(["engine", "manual"])


def _lines(engines: pd.DataFrame) -> pd.DataFrame:
    verdicts = [
        f"{verdict} < {least:.3f}" if verdict == EXACT else f"{verdict} {bias:.3f}" if verdict == BIASED else verdict
        for verdict, least, bias in zip(engines["verdict"], engines["detectable_bias"], engines["bias"], strict=True)
    ]
    numbers = {
        name: [f"{value:.0f}" if pd.notna(value) else "–" for value in engines[name]] for name in ("samples", "seconds")
    }
    return _setting(engines).assign(verdict=verdicts, **numbers, why=engines["reason"].astype(object).fillna(""))


def _twins(twins: pd.DataFrame) -> pd.DataFrame:
    if twins.empty:
        return twins
    caught = ["caught" if verdict == BIASED else verdict for verdict in twins["verdict"]]
    return pd.DataFrame({"bug": twins["method"], "outcome": caught, "samples": twins["samples"], "bias": twins["bias"]})
