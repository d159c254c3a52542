"""What one generation looks like, token by token, and how it is shown.

Static HTML: no script, nothing loaded, every text escaped, and nothing told apart by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specdec_lib.decoding.recording import KINDS, Transcript, TranscriptToken
from specdec_lib.report.facts_table import escaped

STYLE = Path(__file__).resolve().parent / "templates" / "transcript.css"
_NARROW = 0.025  # a step that takes less than this share of the strip is too narrow for its number


def transcript_html(shown: Transcript) -> str:
    """Legend, text and timeline; the style sheet `STYLE` says what the classes look like."""
    title = f"<p><strong>{escaped(shown.title)}</strong></p>" if shown.title else ""
    steps = "".join(f'<span class="specdec-step">{"".join(map(_token, step))}</span>' for step in shown.steps)
    return (
        f'<div class="specdec-transcript">{title}{_legend(shown)}<div class="specdec-text">{steps}</div>'
        f"{_timeline(shown)}</div>"
    )


def _legend(shown: Transcript) -> str:
    kinds = {token.kind for step in shown.steps for token in step}
    names = "".join(_token(TranscriptToken(kind, KINDS[kind])) for kind in KINDS if kind in kinds)
    recorded = any(token.target_prob is not None for step in shown.steps for token in step)
    numbers = " Below a token: its probability in percent, target / draft." if recorded else ""
    return f'<p class="specdec-legend">{names}A bar starts each step.{numbers}</p>'


def _token(token: TranscriptToken) -> str:
    text = escaped(token.text.replace("\n", "⏎"))
    numbers = (
        ""
        if token.target_prob is None
        else f"<small>{_percent(token.target_prob)}/{_percent(token.draft_prob)}</small>"
    )
    hidden = (
        f'<span class="specdec-token specdec-{token.kind}"><span class="specdec-word">{text}</span>{numbers}</span>'
    )
    return hidden + ("<br>" if "\n" in token.text and token.kind != "rejected" else "")


def _percent(prob: float | None) -> str:
    if prob is None:
        return "–"
    return "&lt;1" if 0 < prob < 0.005 else f"{100 * prob:.0f}"


def _timeline(shown: Transcript) -> str:
    total = max(sum(shown.seconds), sum(shown.baseline_seconds))
    ours = _strip("With speculation", shown.seconds, shown.emitted, total)
    if not shown.baseline_seconds:
        return f'<div class="specdec-timeline">{ours}</div>'
    theirs = _strip("Without speculation", shown.baseline_seconds, [1] * len(shown.baseline_seconds), total)
    return f'<div class="specdec-timeline">{ours}{theirs}</div>'


def _strip(name: str, seconds: Sequence[float], emitted: Sequence[int], total: float) -> str:
    """Prefill and steps as blocks on one time axis, each with the number of tokens it brought."""
    blocks, now = [], 0.0
    for index, (duration, tokens) in enumerate(zip(seconds, emitted, strict=True)):
        kind = ' class="specdec-start"' if index == 0 else ' class="specdec-many"' if tokens > 1 else ""
        place = f"left:{100 * now / total:.2f}%;width:{100 * duration / total:.2f}%"
        label = tokens if index and tokens > 1 and duration / total > _NARROW else ""
        blocks.append(f'<span{kind} style="{place}">{label}</span>')
        now += duration
    said = f"{name}: {sum(emitted)} tokens in {1e3 * now:.0f} ms, prefill (hatched) and {len(seconds) - 1} steps"
    return f'<p>{said}</p><div class="specdec-strip" role="img" aria-label="{said}">{"".join(blocks)}</div>'
