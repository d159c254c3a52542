"""A transcript's HTML shows text of any kind and obeys none of it."""

from types import SimpleNamespace

from specdec_lib.report.safe_html import visible
from specdec_lib.report.transcript import transcript_html

STEPS = [[("own", "Once", None, None)], [("accepted", " upon", 0.9, 0.8), ("resampled", " a\n", 0.004, 0.5)]]
TIMES = {"seconds": [0.1, 0.02], "emitted": [1, 2], "baseline_seconds": [0.1, 0.01, 0.01]}


def test_kinds_probabilities_and_both_timelines_are_there():
    text = transcript_html(SimpleNamespace(title="", steps=STEPS, **TIMES))
    assert text.count("specdec-accepted") == 2  # in the text and in the legend
    assert "<small>90/80</small>" in text
    assert "<small>&lt;1/50</small>" in text
    assert "⏎" in text
    assert "With speculation: 3 tokens in 120 ms" in text
    assert "Without speculation: 3 tokens in 120 ms" in text


def test_text_is_escaped_and_characters_that_hide_or_reorder_text_are_shown_by_number():
    evil = "<script>alert(1)</script>\u202e\x00\ud800 'quoted' \"twice\""
    steps = [[("own", evil, None, None)], [("<b>", evil, 1.0, 1.0)]]
    text = transcript_html(SimpleNamespace(title=evil, steps=steps, **TIMES))
    assert "<script" not in text
    assert "<b>" not in text
    assert "⟨U+202E⟩⟨U+0000⟩⟨U+D800⟩" in text
    text.encode("utf-8")
    assert visible("plain\ttext\nעברית") == "plain\ttext\nעברית"
