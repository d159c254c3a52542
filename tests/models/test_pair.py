"""Loading a pair: what is refused, and that a pair of ordinary checkpoints decodes."""

from pathlib import Path

import pytest
import torch
from checkpoints import WORDS, write_checkpoint
from small_tokenizers import byte_level, sentencepiece
from transformers import AutoTokenizer

from specdec_lib import ModelProposer, NgramProposer, SamplingConfig, autoregressive_decode, speculative_decode
from specdec_lib.machine.environment import engine_facts
from specdec_lib.models import pair as pair_module
from specdec_lib.models.pair import check_study_pair, load_pair
from specdec_lib.params_files import load_params
from specdec_lib.study.transformers_generate import transformers_decode


@pytest.fixture
def target(tmp_path):
    return write_checkpoint(tmp_path / "target")


@pytest.fixture
def draft(tmp_path):
    return write_checkpoint(tmp_path / "draft", layers=1)


def test_a_pair_of_checkpoints_decodes_like_transformers(target, draft):
    pair = load_pair(target=target, draft=draft, dtype="float32")
    assert pair.stop_token_ids == (1,)
    assert all(len(sha) == 64 for sha in pair.files.values())
    prompts = [torch.tensor([3, 4, 5]), torch.tensor([6, 7])]
    greedy = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=0)}
    reference = transformers_decode(pair.target, prompts, seed=0, **greedy).tokens
    generator = torch.Generator()
    ours = autoregressive_decode(pair.target, prompts, generator=generator, **greedy).tokens
    speculated = [
        speculative_decode(pair.target, proposer, prompts, num_draft_tokens=3, generator=generator, **greedy).tokens
        for proposer in (ModelProposer(pair.draft), NgramProposer())
    ]
    for tokens in (ours, *speculated):
        assert [row.tolist() for row in tokens] == [row.tolist() for row in reference]


def test_the_transformers_reference_does_not_stop_at_the_end_token(tmp_path):
    """Its checkpoint names an end-of-text token, which greedy decoding emits; the reference goes on all the same."""
    folder = write_checkpoint(tmp_path / "target")
    pair = load_pair(target=folder, draft=folder, dtype="float32")
    greedy = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=0), "seed": 0}
    emitted = transformers_decode(pair.target, [torch.tensor([3])], **greedy).tokens[0]
    pair.target.model.generation_config.eos_token_id = int(emitted[2])
    again = transformers_decode(pair.target, [torch.tensor([3])], **greedy)
    assert again.tokens[0].tolist() == emitted.tolist()
    assert pair.target.model.generation_config.eos_token_id == int(emitted[2])


def test_transformers_sampling_leaves_the_global_generator_alone(target, draft):
    pair = load_pair(target=target, draft=draft, dtype="float32")
    before = torch.random.get_rng_state()
    result = transformers_decode(
        pair.target, [torch.tensor([3])], max_new_tokens=5, sampling=SamplingConfig(1.0, top_k=5), seed=1
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(result.tokens[0]) == 5
    assert len(result.step_s) == 4


def test_a_draft_whose_ids_differ_is_read_by_its_own(target, tmp_path):
    """The same words at other ids: the pair decodes like the target alone, and says what it shares."""
    swapped = [*WORDS[:10], WORDS[11], WORDS[10], *WORDS[12:]]
    pair = load_pair(target=target, draft=write_checkpoint(tmp_path / "other", words=swapped), dtype="float32")
    assert "40 of the target's 40 tokens are the draft's too, 100% of those in an ordinary text" in repr(pair)
    assert engine_facts(pair)["vocabulary"]["shared_tokens"] == 40
    options = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=0)}
    prompts = [torch.tensor([3, 10, 5]), torch.tensor([11, 7])]
    expected = autoregressive_decode(pair.target, prompts, **options).tokens
    found = speculative_decode(pair.target, ModelProposer(pair.draft), prompts, num_draft_tokens=3, **options).tokens
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]


def test_a_draft_of_another_family_drafts_for_a_target(tmp_path):
    """A byte-level target and a SentencePiece draft: text that only one of them has a token for is decoded too."""
    folders = []
    for name, tokenizer in (("target", byte_level()), ("draft", sentencepiece())):
        folders.append(write_checkpoint(tmp_path / name, words=[f"w{number}" for number in range(len(tokenizer) + 7)]))
        tokenizer.save_pretrained(folders[-1])
    pair = load_pair(target=folders[0], draft=folders[1], dtype="float32")
    assert pair.translation.longest > 1
    assert 0.5 < pair.translation.share_of_text < 1
    prompts = [pair.tokenizer(text, return_tensors="pt")["input_ids"][0] for text in ("the lazy dog", "Köln 日本")]
    options = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=0)}
    expected = autoregressive_decode(pair.target, prompts, **options).tokens
    found = speculative_decode(pair.target, ModelProposer(pair.draft), prompts, num_draft_tokens=3, **options)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected]
    assert found.drafted > 0


def test_a_vocabulary_without_a_common_word_is_refused_before_weights_are_read(target, tmp_path, monkeypatch):
    other = write_checkpoint(tmp_path / "other", words=["w0", "w1", *(f"v{i}" for i in range(38))])
    monkeypatch.setattr(pair_module, "load_language_model", lambda *given, **options: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=r"other has no token in common with .*target.*: choose a draft") as refusal:
        load_pair(target=target, draft=other)
    assert "\n" not in str(refusal.value)


def test_truncated_weights_are_refused(target, draft):
    weights = Path(draft) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"draft.*is damaged or truncated.*delete it and fetch it again") as refusal:
        load_pair(target=target, draft=draft)
    assert "\n" not in str(refusal.value)


def test_missing_weights_are_refused(target, tmp_path):
    (tmp_path / "empty").mkdir()
    AutoTokenizer.from_pretrained(target).save_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no safetensors file"):
        load_pair(target=target, draft=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gpt-9"}, "unknown pair 'gpt-9': choose one of toy"),
        ({}, "both target= and draft="),
        ({"name": "toy", "target": "x", "draft": "y"}, "either the name of a preset"),
        ({"name": "toy", "device": "cuda"}, "sees no CUDA device"),
        ({"name": "toy", "device": "cuda:1"}, "sees no CUDA device"),
        ({"name": "toy", "device": "gpu"}, "device is 'gpu': give 'cpu', 'cuda' or 'cuda:<number>'"),
        ({"name": "smollm2-135m-embedded", "dtype": "bf16"}, "choose one of float32, float16, bfloat16"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one case needs a machine without CUDA")
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_pair(**arguments)


def test_a_study_is_checked_from_small_files_alone(target, draft):
    study = load_params("smoke").model_copy(update={"pair": "custom", "target": target, "draft": draft})
    assert check_study_pair(study)[1] == 128
    with pytest.raises(ValueError, match=r"cannot load .*nowhere"):
        check_study_pair(study.model_copy(update={"draft": "./nowhere"}))
