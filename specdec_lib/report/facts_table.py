"""Facts as a small HTML table: what JupyterLab shows of a result or a pair. Every text is escaped."""

from __future__ import annotations

import html
import re
import unicodedata

# Marks that turn the direction of writing, line separators and what is no character: shown by their number instead.
_INVISIBLE = re.compile("[\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def facts_table(title: str, facts: dict[str, object]) -> str:
    """An HTML table with one fact in each line; None becomes an en dash."""
    lines = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{"–" if value is None else escaped(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<table class="specdec-facts"><caption>{escaped(title)}</caption><tbody>{lines}</tbody></table>'


def escaped(value: object) -> str:
    """Any text so that HTML shows it and nothing else: escaped, and `visible`."""
    return html.escape(visible(str(value)))


def visible(text: str) -> str:
    """Show by their number, such as ⟨U+202E⟩, the characters that hide, or that disorder the text around them.

    Line breaks and tabs stay as they are.
    """
    text = _INVISIBLE.sub(lambda match: _number(match[0]), text)
    return "".join(
        _number(letter) if unicodedata.category(letter) == "Cc" and letter not in "\n\t\r" else letter
        for letter in text
    )


def _number(letter: str) -> str:
    return f"⟨U+{ord(letter):04X}⟩"
