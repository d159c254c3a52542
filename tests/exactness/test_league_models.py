"""The tiny models of the league: every engine must be able to read them, and a wrong rule must show on them."""

import pytest
import torch
from transformers import AutoTokenizer

from specdec_lib.config import SamplingConfig
from specdec_lib.exactness.league.subject import Line, known_subjects, lines_of
from specdec_lib.exactness.league.tiny_models import LETTERS, PROMPTS, greedy_prompts, load_tiny, tiny_models
from specdec_lib.exactness.target_law import target_law, total_variation


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECDEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def laws_of(name):
    return [target_law(load_tiny(name), torch.tensor(prompt), SamplingConfig(), 1) for prompt in PROMPTS]


def test_target_and_draft_disagree_strongly_and_never_stop():
    for target, draft in zip(laws_of("target"), laws_of("draft"), strict=True):
        assert 0.3 < total_variation(target, draft) < 0.9
        for law in (target, draft):
            assert sum(law.get((token,), 0.0) for token in range(5, 8)) < 1e-15


def test_the_other_draft_spells_the_same_texts_with_other_tokens():
    paths = tiny_models()["checkpoint"]
    target, other = (AutoTokenizer.from_pretrained(paths[name]) for name in ("target", "other draft"))
    text = LETTERS * 2
    assert target(text).input_ids == [0, 1, 2, 3, 4] * 2
    assert len(other(text).input_ids) < len(text)
    assert other.decode(other(text).input_ids) == text


def test_prompts_are_texts():
    assert all(0 <= token < len(LETTERS) for prompt in (*PROMPTS, *greedy_prompts()) for token in prompt)


def test_every_subject_has_a_baseline_and_lines_of_their_own():
    """Files of subjects run where this library is not installed, unless they run in our own environment."""
    names: list[str] = []
    for subject in known_subjects():
        lines: list[Line] = list(lines_of(subject))
        names += [line.name for line in lines]
        assert subject.kind == "twin" or subject.absent or any(line.num_draft_tokens == 0 for line in lines)
        assert not subject.requirement or "import specdec_lib" not in subject.file.read_text()
    assert len(names) == len(set(names))
