"""An executed notebook as one HTML page: no script, nothing loaded, and no HTML but what an allow-list names."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import bleach
from jinja2 import pass_context
from latex2mathml.converter import convert_to_element
from mistune import HTMLRenderer
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors.sanitize import SanitizeHTML
from traitlets.config import Config

TEMPLATES = Path(__file__).resolve().parent / "templates"
HIDDEN_CELLS = {"parameters", "injected-parameters"}  # the index lists the params
TAGS = {
    *("a", "abbr", "b", "bdi", "blockquote", "br", "caption", "code", "dd", "del", "details", "div", "dl", "dt", "em"),
    *("h1", "h2", "h3", "h4", "hr", "i", "li", "ol", "p", "pre", "small", "span", "strong", "sub", "summary", "sup"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {  # for each attribute the tags that may carry it, and what its value may be
    "class": (TAGS, r"[\w -]*"),
    "id": ({"h2", "h3", "h4"}, r"[\w-]+"),
    "href": ({"a"}, r"#[\w-]+|https://.+|[\w.-]+\.html(#[\w-]+)?"),
    "title": ({"abbr", "span"}, r".*"),
    "aria-label": ({"div"}, r".*"),
    "role": ({"div"}, r"img|group"),
    "tabindex": ({"div"}, r"0"),
    "scope": ({"th"}, r"row|col"),
    "colspan": ({"td", "th"}, r"\d+"),
    "rowspan": ({"td", "th"}, r"\d+"),
    "style": ({"span"}, r"left:[\d.]+%;width:[\d.]+%"),  # a block of a timeline
}
MATHML_TAGS = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "msub", "msup", "msubsup"),
    *("munder", "mover", "munderover", "mstyle"),
}
MATHML_ATTRIBUTES = {"display", "displaystyle", "stretchy", "fence", "form", "movablelimits", "mathvariant", "width"}
_STYLE_ELEMENTS = re.compile(r"<style\b.*?</style\s*>", re.DOTALL | re.IGNORECASE)
_FORMULA = re.compile(r'<code class="formula">(\d+)</code>')
_SECTION = re.compile(r'<h2 id="([\w-]+)">(.*?)</h2>', re.DOTALL)
_CONTENTS = "<!-- contents -->"


def render_page(notebook: Path) -> str:
    """The page of an executed notebook.

    Code is behind a disclosure; params, warnings and what cells tagged `progress` printed are left out. Formulas are
    MathML. Every text of a cell's output is escaped or reduced to the tags and attributes above, and the page's
    Content-Security-Policy forbids scripts and loading.
    """
    exporter = HTMLExporter(
        config=Config(
            TagRemovePreprocessor={"remove_cell_tags": HIDDEN_CELLS, "remove_all_outputs_tags": {"progress"}},
        ),
        template_name="report",
        extra_template_paths=[str(TEMPLATES)],
        extra_template_basedirs=[str(TEMPLATES)],
        filters={"markdown2html": markdown_to_html},
    )
    exporter.register_preprocessor("nbconvert.preprocessors.TagRemovePreprocessor", enabled=True)
    exporter.register_preprocessor(_Sanitizer(), enabled=True)
    page, _ = exporter.from_filename(str(notebook))
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in _SECTION.findall(page))
    return page.replace(_CONTENTS, f"<ol>{links}</ol>")


def clean(text: str) -> str:
    """HTML with nothing in it but `TAGS` and `ATTRIBUTES`; what is left of other tags is their text."""
    return bleach.clean(_STYLE_ELEMENTS.sub("", text), **_bleach_arguments())


@pass_context
def markdown_to_html(context: Any, source: str) -> str:
    """Markdown to clean HTML. Formulas become MathML in Markdown cells, which are ours, and stay text in outputs."""
    renderer = _Renderer()
    text = clean(MarkdownWithMath(renderer=renderer).render(source))
    if context.get("output") is not None:
        return _FORMULA.sub(lambda match: f"<code>{html.escape(renderer.formulas[int(match[1])][0])}</code>", text)
    return _FORMULA.sub(lambda match: mathml(*renderer.formulas[int(match[1])]), text)


def mathml(formula: str, display: str = "inline") -> str:
    """A TeX formula as MathML, which browsers draw without a script.

    Raises:
        ValueError: the formula uses something that is not on our list.
    """
    root = convert_to_element(formula, display=display)
    for element in root.iter():
        unknown = set(element.attrib) - MATHML_ATTRIBUTES - {"xmlns"}
        if element.tag not in MATHML_TAGS or unknown:
            raise ValueError(f"the formula {formula!r} needs {element.tag} {sorted(unknown)}: write it more simply")
        element.text = html.unescape(element.text or "")  # the converter writes character references
    return ElementTree.tostring(root, encoding="unicode")


class _Renderer(IPythonRenderer):
    """Headings that can be linked to, and formulas set aside until the rest is clean."""

    def __init__(self) -> None:
        super().__init__(escape=False, exclude_anchor_links=True)
        self.formulas: list[tuple[str, str]] = []

    def heading(self, text: str, level: int, **attributes: Any) -> str:
        name = re.sub(r"[^\w]+", "-", html.unescape(re.sub("<[^>]*>", "", text)).lower()).strip("-")
        return f'<h{level} id="{name}">{text}</h{level}>\n' if level > 1 else f"<h1>{text}</h1>\n"

    def block_code(self, code: str, info: str | None = None) -> str:
        return HTMLRenderer.block_code(self, code, info)

    def inline_math(self, body: str) -> str:
        return self._formula(body, "inline")

    def block_math(self, body: str) -> str:
        return f"<p>{self._formula(body, 'block')}</p>\n"

    def _formula(self, body: str, display: str) -> str:
        self.formulas.append((body.strip(), display))
        return f'<code class="formula">{len(self.formulas) - 1}</code>'


class _Sanitizer(SanitizeHTML):
    """nbconvert's sanitiser with our list. Markdown waits for `markdown_to_html`, which cleans it once it is HTML."""

    safe_output_keys = {"metadata", "text/plain", "text/markdown", "image/png"}  # noqa: RUF012
    sanitized_output_types = {"text/html"}  # noqa: RUF012

    def preprocess_cell(self, cell: Any, resources: Any, cell_index: int) -> tuple[Any, Any]:
        if cell.cell_type == "raw":
            cell.source = ""
        return (cell, resources) if cell.cell_type != "code" else super().preprocess_cell(cell, resources, cell_index)

    def sanitize_code_outputs(self, outputs: Any) -> Any:
        for output in super().sanitize_code_outputs(outputs):
            if "data" in output and not output.data:
                output.data = {"text/plain": "(an output of a kind that reports do not show)"}
        return outputs

    def sanitize_html_tags(self, html_str: str) -> str:
        return clean(html_str)


def _bleach_arguments() -> dict[str, Any]:
    from bleach.css_sanitizer import CSSSanitizer

    return {
        "tags": TAGS,
        "attributes": _allowed,
        "protocols": {"https"},
        "css_sanitizer": CSSSanitizer(allowed_css_properties=["left", "width"]),
        "strip": True,
    }


def _allowed(tag: str, name: str, value: str) -> bool:
    tags, form = ATTRIBUTES.get(name, (set(), ""))
    return tag in tags and re.fullmatch(form, value) is not None
