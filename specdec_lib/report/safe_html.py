"""HTML that shows text of unknown origin, such as model output or a device's name, and never obeys it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).resolve().parent / "templates"
# Control characters but tab and line break, marks that change the writing direction, line separators, surrogates.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def escaped(value: object) -> str:
    """The text of a value, escaped for HTML, with invisible characters shown by number."""
    return html.escape(visible(str(value)))


def visible(text: str) -> str:
    """Replace characters that hide or reorder text by their number, such as ⟨U+202E⟩."""
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


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
