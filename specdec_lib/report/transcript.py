"""One generation as static HTML: coloured text, token by token, above a timeline; and one of its steps as a table.

No script, nothing loaded, every text escaped. Underlines differ, so that no two kinds differ by colour alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from specdec_lib.decoding.transcript import KINDS, Transcript, TranscriptToken
from specdec_lib.report.safe_html import escaped
from specdec_lib.report.tables.readable import Format, readable

if TYPE_CHECKING:
    import transformers

    from specdec_lib.decoding.recording import RecordedStep

_NARROW = 0.025  # a step shorter than this share of the timeline has no room for its number


def read_transcripts(folder: Path) -> list[Transcript]:
    """The transcripts that a run recorded; empty if it recorded none."""
    path = Path(folder) / "transcripts.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))["transcripts"] if path.exists() else []
    steps = [[[TranscriptToken(*token) for token in step] for step in each["steps"]] for each in recorded]
    return [Transcript(**each | {"steps": read}) for each, read in zip(recorded, steps, strict=True)]


def transcript_html(transcript: Transcript) -> str:
    """Legend, text and timeline; `templates/transcript.css` styles the classes."""
    title = f"<p><strong>{escaped(transcript.title)}</strong></p>" if transcript.title else ""
    steps = "".join(f'<span class="specdec-step">{"".join(map(_token, step))}</span>' for step in transcript.steps)
    text = f'{title}{_legend(transcript)}<div class="specdec-text">{steps}</div>'
    return f'<div class="specdec-transcript">{text}{_timeline(transcript)}</div>'


def step_table(
    step: RecordedStep, tokenizer: transformers.PreTrainedTokenizerBase | None, row: int = 0
) -> pd.DataFrame:
    """One step of a row: a line for each token that was drafted, then one for the token that the target put in.

    Args:
        tokenizer: None for toys: token ids are shown.
    """
    tokens, draft_probs, target_probs = (values[row].tolist() for values in step[:3])
    accepted, drafted = int(step.num_accepted[row]), sum(prob > 0 for prob in draft_probs)
    outcomes = ["accepted"] * accepted + ["rejected"] + ["after the rejection, not tested"] * drafted
    lines = [
        (tokens[i], "draft", draft_probs[i], target_probs[i], min(1.0, target_probs[i] / draft_probs[i]), outcomes[i])
        for i in range(drafted)
    ]
    kind = "resampled" if accepted < drafted else "bonus" if drafted else "own"
    draft_prob = float(step.next_draft_prob[row]) if kind == "resampled" else None
    target_prob = float(step.next_target_prob[row])
    lines.append((int(step.next_token[row]), "target", draft_prob, target_prob, None, KINDS[kind]))
    table = pd.DataFrame(lines, columns=["token", "from", "draft_prob", "target_prob", "kept", "outcome"])
    table["token"] = [f"“{tokenizer.decode([each])}”" if tokenizer else str(each) for each in table["token"]]
    formats = {
        "token": Format("token"),
        "from": Format("chosen by"),
        "draft_prob": Format("draft's probability", "{:.2%}"),
        "target_prob": Format("target's probability", "{:.2%}"),
        "kept": Format("chance to be accepted", "{:.2%}"),
        "outcome": Format("outcome"),
    }
    return readable(table, list(formats), formats)


def _legend(transcript: Transcript) -> str:
    tokens = [token for step in transcript.steps for token in step]
    found = {kind for kind, *_ in tokens}
    names = "".join(_token((kind, name, None, None)) for kind, name in KINDS.items() if kind in found)
    recorded = any(target_prob is not None for _, _, target_prob, _ in tokens)
    numbers = " Below a token: its probability in percent, target / draft." if recorded else ""
    return f'<p class="specdec-legend">{names}A bar starts each step.{numbers}</p>'


def _token(token: TranscriptToken | Sequence[Any]) -> str:
    kind, text, target_prob, draft_prob = token
    shown = escaped(text.replace("\n", "⏎"))
    probs = "" if target_prob is None else f"<small>{_percent(target_prob)}/{_percent(draft_prob)}</small>"
    line_break = "<br>" if "\n" in text and kind != "rejected" else ""
    word = f'<span class="specdec-word">{shown}</span>{probs}'
    return f'<span class="specdec-token specdec-{escaped(kind)}">{word}</span>{line_break}'


def _percent(prob: float | None) -> str:
    if prob is None:
        return "–"
    return "&lt;1" if 0 < prob < 0.005 else f"{100 * prob:.0f}"


def _timeline(transcript: Transcript) -> str:
    baseline = transcript.baseline_seconds
    total = max(sum(transcript.seconds), sum(baseline))
    strips = _strip("With speculation", transcript.seconds, transcript.emitted, total)
    if baseline:
        strips += _strip("Without speculation", baseline, [1] * len(baseline), total)
    return f'<div class="specdec-timeline">{strips}</div>'


def _strip(name: str, seconds: Sequence[float], emitted: Sequence[int], total: float) -> str:
    """Prefill and steps as blocks on one time axis, each with the number of tokens that it emitted."""
    blocks, start = [], 0.0
    for index, (duration, tokens) in enumerate(zip(seconds, emitted, strict=True)):
        kind = ' class="specdec-start"' if index == 0 else ' class="specdec-many"' if tokens > 1 else ""
        place = f"left:{100 * start / total:.2f}%;width:{100 * duration / total:.2f}%"
        label = tokens if index and tokens > 1 and duration / total > _NARROW else ""
        blocks.append(f'<span{kind} style="{place}">{label}</span>')
        start += duration
    text = f"{name}: {sum(emitted)} tokens in {1e3 * start:.0f} ms, prefill (hatched) and {len(seconds) - 1} steps"
    return f'<p>{text}</p><div class="specdec-strip" role="img" aria-label="{text}">{"".join(blocks)}</div>'
