"""The league table as data in outputs/published/league, with the smallest example of each biased way."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from specdec_lib.exactness.league.greedy_table import greedy_table
from specdec_lib.exactness.league.subject import Subject
from specdec_lib.exactness.league.verdict_names import BIASED
from specdec_lib.exactness.league.verdicts import league_table
from specdec_lib.machine.files import write_atomically
from specdec_lib.report.league_page import league_page, read_league
from specdec_lib.report.notebooks import ROOT

PAGE = ROOT / "docs" / "league.md"
WAY = ["subject", "version", "method", "rule", "setting"]
EXAMPLE = '''"""{title}: biased by {bias:.3f} in the league table."""

from specdec_lib.exactness.league.example import show_bias

show_bias({subject!r}, {way!r}, {gamma}, {sampling}, samples={samples}, position={position})
'''


def write_league(subjects: Sequence[Subject], results: Path, published: Path, page: Path) -> list[Path]:
    """Write the tables, an example for each biased way and the page from what is on disk; returns the paths."""
    table, greedy = league_table(subjects, results), greedy_table(subjects, results)
    published.mkdir(parents=True, exist_ok=True)
    examples = published / "examples"
    shutil.rmtree(examples, ignore_errors=True)
    table["example"] = None
    table.loc[table.duplicated(["subject", "manual"]), "manual"] = None  # said once
    for number, row in smallest_examples(table).iterrows():
        examples.mkdir(exist_ok=True)
        name = "".join(
            letter if letter.isalnum() else "_" for letter in f"{row['subject']} {row['method']} {row['setting']}"
        )
        path = examples / f"{name.lower()}.py"
        path.write_text(example_of(row), encoding="utf-8")
        table.loc[number, "example"] = path.name
    paths = [published / "league.csv", published / "greedy.csv", page]
    for each, path in zip((table, greedy), paths, strict=False):
        write_atomically(path, each.to_csv(index=False, float_format="%.3g"))
    write_atomically(page, league_page(*read_league(published)))
    return paths


def smallest_examples(table: pd.DataFrame) -> pd.DataFrame:
    """Of each biased way of an engine the line with the shortest draft, and of those the largest bias."""
    if "bias" not in table:
        return table.iloc[:0]
    biased = table[(table["verdict"] == BIASED) & (table["kind"] == "engine")]
    return biased.sort_values(["num_draft_tokens", "bias"], ascending=[True, False]).drop_duplicates(WAY)


def example_of(row: pd.Series) -> str:
    """A program of a few lines that shows the bias of a line, with as many samples as make it plain."""
    return EXAMPLE.format(
        title=f"{row['subject']}, {row['method']}, {row['setting']}, gamma {row['num_draft_tokens']}",
        bias=row["bias"],
        subject=row["subject"],
        way=f"{row['method']}, {row['rule']}, {row['setting']}",
        gamma=row["num_draft_tokens"],
        sampling=(float(row["temperature"]), int(row["top_k"]), float(row["top_p"])),
        samples=min(max(math.ceil(4 / max(row["bias"], 0.01) ** 2), 200), 20_000),
        position=int(row["position"]),
    )
