"""A transcript tells accepted from resampled, bonus and rejected tokens."""

import pytest
import torch

from specdec_lib import ModelProposer, NgramProposer, Recording, SamplingConfig, autoregressive_decode, load_pair
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.decoding.recording import RecordedStep, transcript
from specdec_lib.decoding.result import DecodeResult

PAIR = load_pair("toy")
PROMPTS = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7, 8])]


def decode(recording, stop_token_ids=(), proposer=None, temperature=1.0):
    return speculative_decode(
        PAIR.target,
        proposer or ModelProposer(PAIR.draft),
        PROMPTS,
        max_new_tokens=40,
        num_draft_tokens=4,
        sampling=SamplingConfig(temperature),
        generator=torch.Generator().manual_seed(1),
        stop_token_ids=stop_token_ids,
        verification=recording,
    )


def emitted(shown):
    return [int(token.text) for step in shown.steps for token in step if token.kind != "rejected"]


def kinds(shown):
    return [[token.kind for token in step] for step in shown.steps]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("stops", [(), (3,)])
@pytest.mark.parametrize("proposer", [ModelProposer(PAIR.draft), NgramProposer()])
def test_the_emitted_tokens_are_the_results_in_every_row(row, stops, proposer):
    recording = Recording()
    result = decode(recording, stops, proposer)
    shown = transcript(result, None, recording, row=row)
    assert emitted(shown) == result.tokens[row].tolist()
    assert sum(shown.emitted) == len(result.tokens[row])
    assert len(shown.seconds) == len(shown.emitted)
    for step in kinds(shown)[1:]:
        assert set(step[:-2]) <= {"accepted"}
        assert ("rejected" in step) == (step[-1] == "resampled")


def test_recording_changes_nothing_and_agrees_with_the_counters():
    recording = Recording()
    recorded, plain = decode(recording), decode("token")
    assert all(torch.equal(a, b) for a, b in zip(recorded.tokens, plain.tokens, strict=True))
    counts = [kind for row in (0, 1) for step in kinds(transcript(recorded, None, recording, row=row)) for kind in step]
    assert counts.count("accepted") == recorded.accepted
    assert counts.count("rejected") == recorded.tested - recorded.accepted


def test_probabilities_are_those_of_the_toy_tables():
    """The toy's next-token law is known exactly: softmax of its table at the last two tokens."""
    recording = Recording()
    result = decode(recording)
    before = [*PROMPTS[0].tolist(), int(result.tokens[0][0])]
    for step in transcript(result, None, recording).steps[1:]:
        for token in step:
            target = PAIR.target.model.table[before[-2], before[-1]].softmax(0)[int(token.text)]
            assert token.target_prob == pytest.approx(float(target), abs=1e-5)
            if token.kind != "bonus" and token.kind != "own":
                draft = PAIR.draft.model.table[before[-2], before[-1]].softmax(0)[int(token.text)]
                assert token.draft_prob == pytest.approx(float(draft), abs=1e-5)
            if token.kind != "rejected":
                before.append(int(token.text))


def test_a_baseline_call_gives_the_times_of_the_same_tokens():
    recording = Recording()
    result = decode(recording)
    options = {"max_new_tokens": 9, "sampling": SamplingConfig(0)}
    base = autoregressive_decode(PAIR.target, PROMPTS, **options)
    assert len(transcript(result, None, recording, baseline=base).baseline_seconds) == 9


def test_a_recording_of_another_call_is_refused():
    recording = Recording()
    result = decode(recording)
    decode(recording)
    with pytest.raises(ValueError, match="use a new Recording for each call"):
        transcript(result, None, recording)
    with pytest.raises(ValueError, match="rows 0 to 1"):
        transcript(result, None, recording, row=2)


def test_letters_spread_over_tokens_are_put_together():
    class Bytes:
        """A tokenizer whose tokens are single bytes."""

        def decode(self, ids, **_):
            return bytes(ids).decode("utf-8", errors="replace")

    tokens = list("aé".encode())
    recording = Recording()
    one = torch.tensor([[1.0]])
    recording.steps = [
        RecordedStep(torch.tensor([[0]]), one * 0, one, torch.tensor([0]), torch.tensor([token]), one[0], one[0])
        for token in tokens[1:]
    ]
    result = DecodeResult([torch.tensor(tokens)], 0.1, [0.1] * 2, [[1], [1]])
    texts = [token.text for step in transcript(result, Bytes(), recording).steps for token in step]
    assert texts == ["a", "\ufffd", "é"]


def test_a_result_says_what_was_decoded():
    result = decode("token")
    assert repr(result).startswith("DecodeResult(speculative decoding, 80 new tokens in 2 row(s)")
    assert f"acceptance rate {result.acceptance_rate:.3f}" in repr(result)
    assert "acceptance" not in repr(DecodeResult([torch.arange(3)], 0.1, [0.1] * 2, [[1]] * 2))
