"""HTML that shows text of unknown origin, such as model output or a device's name, and never obeys it."""

from __future__ import annotations

import html
import re
import unicodedata
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).resolve().parent / "templates"
# Marks that change the writing direction, line separators and surrogates.
_INVISIBLE = re.compile("[\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def escaped(value: object) -> str:
    """The text of a value, escaped for HTML, with invisible characters shown by number."""
    return html.escape(visible(str(value)))


def visible(text: str) -> str:
    """Replace characters that hide or reorder text by their number, such as ⟨U+202E⟩. Line breaks and tabs stay."""
    text = _INVISIBLE.sub(lambda match: _number(match[0]), text)
    return "".join(_number(each) if unicodedata.category(each) == "Cc" and each not in "\n\t\r" else each for each in text)


def render_template(template: str, **values: object) -> str:
    """A page in which every value is escaped, unless its template marks it as safe; None becomes the word none."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else "none" if value is None else value,
    )
    return environment.get_template(template).render(**values)


def _number(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
