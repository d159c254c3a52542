"""What one generation looks like, token by token, and how it is shown.

Static HTML: no script, nothing loaded, every text escaped, and nothing told apart by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from specdec_lib.report.facts_table import escaped

STYLE = Path(__file__).resolve().parent / "templates" / "transcript.css"
_NARROW = 0.025  # a step that takes less than this share of the strip is too narrow for its number


KINDS = {  # what each kind of token is called
    "accepted": "accepted draft token",
    "rejected": "rejected draft token, not emitted",
    "resampled": "resampled after a rejection",
    "bonus": "bonus after full acceptance",
    "own": "the target's own, nothing drafted here",
    "last": "last of its step",
}


class TranscriptToken(NamedTuple):
    """One token: what it is called in `KINDS`, its text, and its probabilities where they were recorded."""

    kind: str
    text: str
    target_prob: float | None = None
    draft_prob: float | None = None


@dataclass(frozen=True)
class Transcript:
    """One row of a decoding call, step by step. JupyterLab shows it as coloured text above a timeline.

    Attributes:
        title: what was decoded.
        steps: the tokens of the prefill and of each step; a rejected draft token stands before its replacement.
        seconds: how long the prefill and each step took.
        emitted: how many tokens the prefill and each step emitted.
        baseline_seconds: the same for the baseline's calls, which emit one token each; empty without a baseline.
    """

    title: str
    steps: list[list[TranscriptToken]]
    seconds: list[float]
    emitted: list[int]
    baseline_seconds: list[float]

    def _repr_html_(self) -> str:
        return f"<style>{STYLE.read_text(encoding='utf-8')}</style>{transcript_html(self)}"


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
