"""A transcript's HTML shows text of any kind and obeys none of it."""

from types import SimpleNamespace

import torch

from specdec_lib.decoding.recording import Recording
from specdec_lib.report.safe_html import visible
from specdec_lib.report.transcript import step_table, transcript_html

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


def test_a_step_says_which_tokens_were_drafted_accepted_and_put_in():
    """The first draft token is certain to stay, the second to be rejected, as the target never chooses it."""
    target_probs = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.25, 0.75], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    draft_probs = torch.tensor([[[0.25, 0.25, 0.5], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    recording = Recording()
    recording(target_probs, draft_probs, torch.tensor([[0, 0, 0]]), torch.full((1, 4), 0.5, dtype=torch.float64))
    lines = step_table(recording.steps[0], None).to_numpy().tolist()
    assert lines == [
        ["0", "draft", "25.00%", "50.00%", "100.00%", "accepted"],
        ["0", "draft", "50.00%", "0.00%", "0.00%", "rejected"],
        ["0", "draft", "100.00%", "100.00%", "100.00%", "after the rejection, not tested"],
        ["2", "target", "0.00%", "75.00%", "–", "resampled after a rejection"],
    ]


def test_a_step_without_a_draft_is_the_targets_own():
    recording = Recording()
    target_probs, draft_probs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.zeros(1, 1, 2)
    recording(target_probs, draft_probs, torch.tensor([[0]]), torch.zeros(1, 2, dtype=torch.float64))
    (line,) = step_table(recording.steps[0], None).to_numpy().tolist()
    assert line == ["0", "target", "–", "100.00%", "–", "the target's own, nothing drafted here"]
