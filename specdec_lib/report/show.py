"""Figures, tables and sentences in a notebook: alternative text for pictures, and every text escaped."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from specdec_lib.report.captions import sweep as findings
from specdec_lib.report.facts_table import escaped
from specdec_lib.report.figures import sweep as plots
from specdec_lib.report.transcript_html import Transcript

FEW_LINES = 25  # longer tables are folded away
_NUMBER = re.compile(r"[-+–$]?[\d.,]*(e[-+]\d+)?%?( to [\d.,]+)?")


def show(figure: Figure, finding: str) -> None:
    """Display a figure as a crisp PNG, with the finding as part of its alternative text and as its caption."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=200)
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    alternative = f"{_description(figure)} {finding}"
    metadata = {"alt": alternative, "width": round(figure.get_figwidth() * 96), "caption": finding}
    display({"image/png": data, "text/plain": alternative}, metadata={"image/png": metadata}, raw=True)
    _display_text(finding, {"is_caption": True})


def show_speedups(lines: pd.DataFrame, axis: str) -> None:
    """The speedup along an axis as a figure; only the finding where a single value was measured.

    Args:
        lines: from `headline.along(lines, params, axis)`.
    """
    finding = findings.finding_speedup(lines, axis)
    if lines[axis].nunique(dropna=False) > 1:
        show(plots.speedup_figure(lines, axis), finding)
    else:
        say(f"One value only was measured. {finding}")


def show_table(table: pd.DataFrame, caption: str = "Table") -> None:
    """Display every row of a table, escaped; a long one folded away; an empty one as the word none."""
    if table.empty:
        say(f"{caption}: none.")
    else:
        display({"text/html": table_html(table, caption), "text/plain": table.to_string()}, raw=True)


def show_transcripts(transcripts: Iterable[Transcript]) -> None:
    """Display transcripts one below the other; says so where there are none."""
    transcripts = list(transcripts)
    if not transcripts:
        say("None: a transcript is made in one process, and this target is spread over several devices.")
    for transcript in transcripts:
        display(transcript)


def table_html(table: pd.DataFrame, caption: str) -> str:
    """A table as HTML that a phone can show: what is the same in every line is said once, above it."""
    columns = {str(name): [_shown(value) for value in table[name]] for name in table.columns}
    same = [name for name, values in columns.items() if len(values) > 1 and len(set(values)) == 1]
    differ = {name: values for name, values in columns.items() if name not in same} or columns
    said = ", ".join(f"{name} {columns[name][0]}" for name in same if columns[name][0] != "–")
    caption = f"{caption}. In every line: {said}." if said else f"{caption}."
    kinds = {name: _kind(values) for name, values in differ.items()}
    heads = "".join(f'<th scope="col"{kinds[name]}>{escaped(name)}</th>' for name in differ)
    lines = "".join(f"<tr>{_line(cells, kinds)}</tr>" for cells in zip(*differ.values(), strict=True))
    text = (
        f'<div class="specdec-table" role="group" tabindex="0" aria-label="{escaped(caption)}"><table>'
        f"<caption><span>{escaped(caption)}</span></caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    if len(table) <= FEW_LINES:
        return text
    return f"<details><summary>{escaped(caption)} {len(table)} lines</summary>{text}</details>"


def say(text: str) -> None:
    """Display plain text, such as a finding, as an escaped paragraph."""
    _display_text(text, {})


def _display_text(text: str, metadata: dict[str, bool]) -> None:
    paragraph = f'<p class="finding">{escaped(text)}</p>'
    display({"text/html": paragraph, "text/plain": text}, metadata={"text/html": metadata}, raw=True)


def _description(figure: Figure) -> str:
    """What is drawn, for who cannot see it: title, axes and panels."""
    axes = figure.axes[0] if figure.axes else None
    drawn = f", {axes.get_ylabel()} against {axes.get_xlabel()}" if axes and axes.get_ylabel() else ""
    panels = [panel.get_title(loc="left") for panel in figure.axes]
    listed = f"; panels: {', '.join(panels)}" if len(panels) > 1 and all(panels) else ""
    return " ".join(f"{figure.get_suptitle()}{drawn}{listed}.".split())


def _shown(value: object) -> str:
    """A number, short; an en dash for what is undefined."""
    if pd.isna(value):
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _kind(values: list[str]) -> str:
    if all(map(_NUMBER.fullmatch, values)):
        return ' class="number"'
    return ' class="long"' if max(map(len, values)) > 40 else ""


def _line(cells: tuple[str, ...], kinds: dict[str, str]) -> str:
    first, *rest = (escaped(cell) for cell in cells)
    _, *others = kinds.values()
    return f'<th scope="row">{first}</th>' + "".join(
        f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, others, strict=True)
    )
