"""An executed notebook as one HTML page: no script, nothing loaded, and only the HTML that an allow-list names."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import mistune
import nbformat
import nh3
from jupyterlab_pygments import JupyterStyle
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from specdec_lib.report.safe_html import escaped, render_template, visible

HIDDEN_CELLS = {"parameters", "injected-parameters"}  # the index lists the params
MATHML = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "msub", "msup", "msubsup"),
    *("munder", "mover", "munderover", "mstyle"),
}
TAGS = MATHML | {
    *("a", "b", "blockquote", "br", "caption", "code", "details", "div", "em", "h1", "h2", "h3", "h4", "hr", "i", "li"),
    *("ol", "p", "pre", "small", "span", "strong", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {  # for each attribute the tags that may carry it, and the form of its value
    "class": (TAGS - MATHML, r"[\w -]*"),
    "id": ({"h2", "h3", "h4"}, r"[\w-]+"),
    "href": ({"a"}, r"#[\w-]+|https://.+|[\w.-]+\.html(#[\w-]+)?"),
    "aria-label": ({"div"}, r".*"),
    "role": ({"div"}, r"img|group"),
    "tabindex": ({"div"}, r"0"),
    "scope": ({"th"}, r"row|col"),
    "style": ({"span"}, r"left:[\d.]+%;width:[\d.]+%"),  # a block of a timeline
    **dict.fromkeys(
        ("display", "displaystyle", "stretchy", "fence", "form", "movablelimits", "mathvariant", "width"),
        (MATHML, r"[\w.-]+"),
    ),
}


def _allowed(tag: str, name: str, value: str) -> str | None:
    """The value of an attribute that may stay, else None."""
    tags, form = ATTRIBUTES.get(name, (set(), ""))
    return value if tag in tags and re.fullmatch(form, value, re.DOTALL) else None


_CLEANER = nh3.Cleaner(
    tags=TAGS,
    clean_content_tags={"script", "style"},
    attributes={tag: {name for name, (tags, _) in ATTRIBUTES.items() if tag in tags} for tag in TAGS},
    attribute_filter=_allowed,
    link_rel=None,
)
_SECTION = re.compile(r'<h2 id="([\w-]+)">(.*?)</h2>', re.DOTALL)
_CODE = HtmlFormatter(style=JupyterStyle)


def render_page(notebook: Path, home: str = "../index.html", home_name: str = "All results of this run") -> str:
    """The page of an executed notebook, with a link to `home` at its top.

    Code is folded away. Params, warnings and the outputs of cells tagged `progress` are left out. Formulas become
    MathML. Text outputs are escaped, HTML is reduced to `TAGS` and `ATTRIBUTES`, and the page's
    Content-Security-Policy forbids scripts and loading.
    """
    content = nbformat.read(notebook, as_version=4)
    tagged = [(cell, set(cell.metadata.get("tags", []))) for cell in content.cells if cell.cell_type != "raw"]
    cells = [_shown(cell, tags) for cell, tags in tagged if not HIDDEN_CELLS & tags]
    return render_template(
        "report.html.j2",
        home=home,
        home_name=home_name,
        title=content.metadata.get("title", notebook.stem),
        code_style=_CODE.get_style_defs(".highlight"),
        sections=_SECTION.findall("".join(cell.get("prose", "") for cell in cells)),
        cells=cells,
    )


def clean(text: str) -> str:
    """HTML reduced to `TAGS` and `ATTRIBUTES`; of other tags only their text is kept."""
    return _CLEANER.clean(visible(text))


def markdown_to_html(source: str) -> str:
    """Markdown to clean HTML, with formulas as MathML and headings that can be linked to."""
    return clean(str(mistune.create_markdown(renderer=_Renderer(escape=False), plugins=["math", "table"])(source)))


class _Renderer(mistune.HTMLRenderer):
    def heading(self, text: str, level: int, **attributes: Any) -> str:
        name = re.sub(r"[^\w]+", "-", html.unescape(re.sub("<[^>]*>", "", text)).lower()).strip("-")
        return f'<h{level} id="{name}">{text}</h{level}>\n' if level > 1 else f"<h1>{text}</h1>\n"

    def inline_math(self, text: str) -> str:
        return convert(text.strip(), display="inline")

    def block_math(self, text: str) -> str:
        formula = convert(text.strip(), display="block")
        return f'<div class="formula" role="group" aria-label="Formula" tabindex="0">{formula}</div>\n'


def _shown(cell: Any, tags: set[str]) -> dict[str, Any]:
    if cell.cell_type == "markdown":
        return {"prose": markdown_to_html(cell.source)}
    outputs = [] if "progress" in tags else filter(None, map(_output, cell.outputs))
    return {"code": highlight(visible(cell.source), PythonLexer(), _CODE), "outputs": list(outputs)}


def _output(output: Any) -> dict[str, Any] | None:
    """What the template shows of one output: a picture, clean HTML or escaped text; None for what is left out."""
    if output.output_type == "stream":
        return {"html": f"<pre>{escaped(output.text)}</pre>"} if output.name == "stdout" else None
    data, metadata = output.get("data", {}), output.get("metadata", {})
    if "image/png" in data:
        return metadata.get("image/png", {}) | {"picture": data["image/png"].replace("\n", "")}
    if "text/html" in data:
        repeated = metadata.get("text/html", {}).get("is_caption")  # the figure before it has this text as its caption
        return None if repeated else {"html": clean(data["text/html"])}
    return {"html": f"<pre>{escaped(data.get('text/plain', '(reports do not show outputs of this kind)'))}</pre>"}
