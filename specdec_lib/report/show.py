"""Figures, tables and sentences in a notebook: pictures have alternative texts, and every text is escaped."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from specdec_lib.decoding.transcript import Transcript
from specdec_lib.report.safe_html import TEMPLATES, escaped
from specdec_lib.report.transcript import transcript_html

MANY_LINES = 25  # a longer table is folded away
_NUMBER = re.compile(r"[-+–$]?[\d.,]*(e[-+]\d+)?%?( to [\d.,]+| \([\d.,]+ to [\d.,]+\))?")


def show(figure: Figure, finding: str = "") -> None:
    """Display a figure as a PNG; the finding, if any, is its caption and part of its alternative text."""
    data = _in_base64(figure, 140)
    alternative = f"{_description(figure)} {finding}".strip()
    metadata = {"alt": alternative, "width": round(figure.get_figwidth() * 96), "caption": finding}
    display({"image/png": data, "text/plain": alternative}, metadata={"image/png": metadata}, raw=True)
    if finding:
        _display_html(f'<p class="finding">{escaped(finding)}</p>', finding, is_caption=True)


def picture_of(figure: Figure, dpi: int = 160) -> dict[str, str]:
    """A figure for a page that no notebook made: its PNG in base64, and its alternative text."""
    return {"data": _in_base64(figure, dpi), "alt": _description(figure)}


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as a PNG of 256 colours: a fourth of the bytes, and no difference that is seen."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return small.getvalue()


def show_text(text: str) -> None:
    """Display plain text, such as a finding, as an escaped paragraph."""
    _display_html(f'<p class="finding">{escaped(text)}</p>', text)


def show_table(table: pd.DataFrame, caption: str = "Table", folded: bool = False) -> None:
    """Display every row of a table, escaped. A long table is always folded away; an empty one becomes the word none."""
    if table.empty:
        show_text(f"{caption}: none.")
    else:
        _display_html(table_html(table, caption, folded), table.to_string())


def show_transcripts(transcripts: Iterable[Transcript]) -> None:
    """Display transcripts one below the other, or a line that this run recorded none."""
    transcripts = list(transcripts)
    if not transcripts:
        show_text("This run recorded no transcripts.")
    sheet = (TEMPLATES / "transcript.css").read_text(encoding="utf-8")
    for transcript in transcripts:
        _display_html(f"<style>{sheet}</style>{transcript_html(transcript)}", transcript.title)


def table_html(table: pd.DataFrame, caption: str, folded: bool = False) -> str:
    """A table as HTML that fits a phone: a column with one value throughout moves into the caption."""
    columns = {str(name): [_shown(value) for value in table[name]] for name in table.columns}
    alike = [name for name, values in columns.items() if len(values) > 1 and len(set(values)) == 1]
    constant = [name for name in alike if name != "outcome"]  # which readers look for
    varying = {name: values for name, values in columns.items() if name not in constant} or columns
    common = ", ".join(f"{name} {columns[name][0]}" for name in constant if columns[name][0] != "–")
    caption = escaped(f"{caption}. In every line: {common}." if common else f"{caption}.")
    kinds = [_kind(values) for values in varying.values()]
    heads = "".join(f'<th scope="col"{kind}>{escaped(name)}</th>' for name, kind in zip(varying, kinds, strict=True))
    lines = "".join(_line(cells, kinds) for cells in zip(*varying.values(), strict=True))
    text = (
        f'<div class="specdec-table" role="group" tabindex="0" aria-label="{caption}"><table>'
        f"<caption><span>{caption}</span></caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    fold = folded or len(table) > MANY_LINES
    return f"<details><summary>{caption} {len(table)} lines</summary>{text}</details>" if fold else text


def _display_html(html: str, text: str, **metadata: bool) -> None:
    display({"text/html": html, "text/plain": text}, metadata={"text/html": metadata}, raw=True)


def _in_base64(figure: Figure, dpi: int) -> str:
    return base64.b64encode(png(figure, dpi)).decode("ascii")


def _description(figure: Figure) -> str:
    """Title, axes and panels of a figure, for readers who cannot see it."""
    axes = figure.axes[0] if figure.axes else None
    labels = f", {axes.get_ylabel()} against {axes.get_xlabel()}" if axes and axes.get_ylabel() else ""
    panels = [panel.get_title(loc="left") for panel in figure.axes]
    listed = f"; panels: {', '.join(panels)}" if len(panels) > 1 and all(panels) else ""
    return " ".join(f"{figure.get_suptitle()}{labels}{listed}.".split())


def _shown(value: object) -> str:
    """A number in short; an en dash for an undefined value."""
    if pd.isna(value):
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _kind(values: list[str]) -> str:
    if all(map(_NUMBER.fullmatch, values)):
        return ' class="number"'
    return ' class="long"' if max(map(len, values)) > 40 else ""


def _line(cells: tuple[str, ...], kinds: list[str]) -> str:
    first, *others = map(escaped, cells)
    tail = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(others, kinds[1:], strict=True))
    return f'<tr><th scope="row">{first}</th>{tail}</tr>'
