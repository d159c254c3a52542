"""Figures, tables and sentences in a notebook: alternative text for pictures, and every text escaped."""

from __future__ import annotations

import base64
import html
import io

import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure


def show(figure: Figure, finding: str) -> None:
    """Display a figure as a crisp PNG, with the finding as part of its alternative text and, escaped, below it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=200)
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    alternative = f"{figure.get_suptitle()}: {finding}"
    metadata = {"image/png": {"alt": alternative, "width": round(figure.get_figwidth() * 96)}}
    display({"image/png": data, "text/plain": alternative}, metadata=metadata, raw=True)
    say(finding)


def show_table(table: pd.DataFrame) -> None:
    """Display every row of a table, escaped; an empty table as the word none."""
    if table.empty:
        say("None.")
    else:
        display(HTML(table.to_html(index=False, border=0, na_rep="–")))


def say(text: str) -> None:
    """Display plain text, such as a finding, as an escaped paragraph."""
    display({"text/html": f"<p>{html.escape(text)}</p>", "text/plain": text}, raw=True)
