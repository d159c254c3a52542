"""Distillation on a toy: the gradient is right, and training raises acceptance."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import ONE_GROUP, tiny_llama
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specdec_lib.distill import corpus as corpus_module
from specdec_lib.distill import make
from specdec_lib.distill.students import Corpus, HeadStudent, layers_of_target
from specdec_lib.distill.train import DistillationLoss, Recipe, held_out_acceptance, start_from_regression, train
from specdec_lib.models.attention import our_attention
from specdec_lib.models.runner import LanguageModel

TURN, ASSISTANT, LENGTH = 1, 5, 24


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Its distributions have something to learn."""
    sizes = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 48, "max_position_embeddings": 64}
    return tiny_llama(**sizes, **ONE_GROUP, initializer_range=0.3)


@pytest.fixture
def corpus(model: LlamaForCausalLM, tmp_path: Path) -> Corpus:
    """Two shards of 16 texts in which everything after two forced tokens is the assistant's, at temperature 1."""
    target = LanguageModel(model, "tiny", feature_layers=(0, 1))
    for shard in range(2):
        generator = torch.Generator().manual_seed(shard)
        tokens = torch.tensor([[TURN, ASSISTANT]]).repeat(16, 1)
        while tokens.shape[1] < LENGTH:
            hidden = target.forward(tokens, target.new_cache(16, LENGTH)).hidden[:, -1]
            logits = target.logits(hidden).float()
            logits = logits.index_fill(1, torch.tensor([TURN]), float("-inf"))
            tokens = torch.cat([tokens, logits.softmax(-1).multinomial(1, generator=generator)], dim=1)
        features = target.forward(tokens, target.new_cache(16, LENGTH)).features.bfloat16()
        sampled = torch.ones(16, LENGTH, dtype=torch.bool)
        sampled[:, :2] = False
        tensors = {"tokens": tokens.int(), "sampled": sampled, "features": features}
        save_file(tensors, tmp_path / f"{shard:04d}.safetensors")
    return Corpus(tmp_path, TURN, ASSISTANT)


def test_hand_written_gradient_is_the_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 8, generator=generator, requires_grad=True)
    last_state = torch.randn(5, 8, generator=generator).bfloat16()
    rows = torch.randn(12, 8, generator=generator).bfloat16()
    weights = torch.tensor([0.6, 0.4])
    DistillationLoss.apply(hidden, last_state, rows, weights, 0.5)[0].backward()
    ours, hidden.grad = hidden.grad, None
    target = (last_state @ rows.T).float().softmax(-1)
    log_draft = (hidden.bfloat16().float() @ rows.float().T).log_softmax(-1)
    acceptance = torch.minimum(log_draft.exp(), target).sum(-1)
    losses = 0.5 * -(target * log_draft).sum(-1) - 0.5 * acceptance.log()
    (weights[:, None] * losses).sum(0).mean().backward()
    torch.testing.assert_close(ours, hidden.grad, rtol=0.05, atol=5e-3)


@pytest.mark.parametrize("draft", ["head", "plain"])
def test_training_raises_acceptance(draft: str, model: LlamaForCausalLM, corpus: Corpus) -> None:
    ids = corpus.rank_tokens(model.get_input_embeddings().weight.bfloat16())[:48].sort().values
    student = HeadStudent(model, (0, 1), ids) if draft == "head" else layers_of_target(model, (0, 2), ids)
    before = held_out_acceptance(student, corpus)
    report = train(student, corpus, Recipe(num_batches=25, batch_size=4, steps=2, learning_rate=3e-3))
    assert report["tokens"] == 25 * 4 * LENGTH
    assert held_out_acceptance(student, corpus)[0] > before[0]


def test_regression_is_a_head_start(model: LlamaForCausalLM, corpus: Corpus) -> None:
    student = HeadStudent(model, (0, 1), torch.arange(64))
    before = held_out_acceptance(student, corpus)
    start_from_regression(student, next(corpus.batches(16, torch.Generator().manual_seed(0))))
    assert held_out_acceptance(student, corpus)[0] > before[0]


def test_a_draft_equal_to_the_target_is_always_accepted(model: LlamaForCausalLM, corpus: Corpus) -> None:
    student = layers_of_target(model, (0, 1, 2), torch.arange(64))
    assert min(held_out_acceptance(student, corpus)) > 0.95  # bfloat16 rounds


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and the two that open and close a turn, in the chat format of SmolLM2."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)


def test_make_drafts_goes_from_nothing_to_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole recipe on a toy: text, then both drafts trained and measured; the second time nothing is left to do."""
    monkeypatch.setattr(corpus_module, "CONVERSATION_TOKENS", 80)
    monkeypatch.setattr(corpus_module, "MAX_TURN_TOKENS", 5)
    monkeypatch.setattr(corpus_module, "standard_library_text", lambda: (["Some prose."], ["def f(): pass"]))
    monkeypatch.setattr(make, "NUM_SCORED", 64)
    monkeypatch.setattr(make, "RECIPES", dict.fromkeys(make.RECIPES, (Recipe(num_batches=2, steps=2),)))
    monkeypatch.setattr(make, "FEATURE_LAYERS", (0, 1))
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    config = LlamaConfig(**sizes, **heads, tie_word_embeddings=True, attn_implementation=our_attention())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = LanguageModel(LlamaForCausalLM(config).bfloat16(), "tiny", feature_layers=(0, 1))

    make.make_drafts(tmp_path, target, byte_tokenizer(), num_shards=2)
    for name in make.RECIPES:
        report = json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))
        assert all(0 < chance <= 1 for chance in report["held_out_acceptance"])
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(written) == 2 + len(make.RECIPES)
    make.make_drafts(tmp_path, target, byte_tokenizer(), num_shards=2)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_tasks_are_about_what_the_target_had_answered_to_itself(tmp_path: Path) -> None:
    """Of conversations that open with no task (every third) at a low temperature (every second): rows 2, 8, ..."""
    tokenizer = byte_tokenizer()
    answer, short = "A river is long. " * 15, "No."
    rows = ["<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nA task's answer.<|im_end|>"] * 6
    rows[2] = "".join(f"<|im_start|>assistant\n{text}<|im_end|>\n" for text in (answer, short))
    tokens = [tokenizer.encode(row) for row in rows]
    padded = [row + [0] * (max(map(len, tokens)) - len(row)) for row in tokens]
    save_file({"tokens": torch.tensor(padded, dtype=torch.int32)}, tmp_path / "0000.safetensors")
    own = corpus_module.answers(tmp_path / "0000.safetensors", tokenizer)
    assert own == [answer]

    talk = corpus_module._Conversations(tokenizer, ["Some prose."], ["def f(): pass"], own, random.Random(0))
    assert [answer in talk._task(row) for row in range(6)] == [False, True, False] * 2
    assert "Some prose." in talk._task(0) + talk._task(3) + talk._task(6) + talk._task(9)
    assert talk._task(2) == ""
