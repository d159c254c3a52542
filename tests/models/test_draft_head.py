"""Drafts that share the target's embedding: cached and one-shot forward agree, bad files are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_target
from transformers import AutoModelForCausalLM

from specdec_lib.distill.students import HeadStudent, layers_of_target
from specdec_lib.models.loading.weights import WEIGHTS
from specdec_lib.models.plain_draft import export_plain_draft, load_plain_draft
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shipped_head import ShippedHead

SCORED = torch.tensor([1, 2, 5, 8, 13, 21])


@pytest.fixture
def target() -> LanguageModel:
    return tiny_target()


@pytest.fixture
def folder(target: LanguageModel, tmp_path: Path) -> Path:
    HeadStudent(target.model, (0, 1), SCORED).draft.save(tmp_path)
    return tmp_path


def pairs(target: LanguageModel, head: ShippedHead) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `[2, 9]` and fused states `[2, 9, H]` of a random text."""
    tokens = torch.randint(48, (2, 10), generator=torch.Generator().manual_seed(1))
    features = target.forward(tokens, target.new_cache(2, 16)).features
    return tokens[:, 1:], head.fuse(features[:, :-1])


def test_pair_by_pair_equals_all_at_once(target: LanguageModel, folder: Path) -> None:
    head = ShippedHead.load(folder, target)
    tokens, state = pairs(target, head)
    at_once = head.forward(tokens, state, head.new_cache(2, 16))
    cache = head.new_cache(2, 16)
    one_by_one = []
    for t in range(tokens.shape[1]):
        one_by_one.append(head.forward(tokens[:, t : t + 1], state[:, t : t + 1], cache))
        cache.commit(1, at_most=1)
    torch.testing.assert_close(torch.cat(one_by_one, dim=1), at_once)


def test_training_sees_what_drafting_does(target: LanguageModel, folder: Path) -> None:
    """Three unrolled steps in training equal three drafted tokens with the cache."""
    student = HeadStudent(target.model, (0, 1), SCORED)
    head = ShippedHead.load(folder, target)
    student.draft.load_state_dict(head.state_dict())
    tokens = torch.randint(48, (2, 10), generator=torch.Generator().manual_seed(1))
    features = target.forward(tokens, target.new_cache(2, 16)).features
    unrolled = student.unroll(batch_of(tokens, features), steps=3)
    cache = head.new_cache(2, 16)
    state = head.forward(tokens[:, 1:6], head.fuse(features[:, :5]), cache)[:, -1:]
    cache.commit(5, at_most=5)
    torch.testing.assert_close(head.normed(state[:, 0]), unrolled[0][:, 4])
    for step in (1, 2):
        state = head.forward(tokens[:, 5 + step : 6 + step], state, cache)
        cache.commit(1, at_most=1)
        torch.testing.assert_close(head.normed(state[:, 0]), unrolled[step][:, 4 + step])


def batch_of(tokens: torch.Tensor, features: torch.Tensor) -> object:
    from specdec_lib.distill.students import Batch

    chosen = torch.ones_like(tokens, dtype=torch.bool)
    return Batch(tokens, chosen, chosen, features)


def test_only_the_scored_tokens_get_logits(target: LanguageModel, folder: Path) -> None:
    head = ShippedHead.load(folder, target)
    hidden = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    assert head.scores(hidden).shape == (2, 3, len(SCORED))
    assert head.scored_ids.tolist() == SCORED.tolist()


def test_embedding_is_shared_not_shipped(target: LanguageModel, folder: Path) -> None:
    head = ShippedHead.load(folder, target)
    own = sum(p.numel() for name, p in head.named_parameters())
    assert (folder / WEIGHTS).stat().st_size < 2 * own + 4096


def test_refuses_another_target(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"width 24 .* tiny has 48 .*its own target"):
        ShippedHead.load(folder, tiny_target(hidden_size=48))


def test_refuses_missing_files(target: LanguageModel, folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing: .*make draft"):
        ShippedHead.load(folder, target)
    with pytest.raises(ValueError, match=r"config.json is missing: check the repository out"):
        ShippedHead.load(tmp_path / "nowhere", target)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_refuses_weights_that_are_not_those_of_its_config(damage, target: LanguageModel, folder: Path) -> None:
    """Truncated, or with a single bit flipped, which a safetensors file does not notice."""
    weights = folder / WEIGHTS
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors has SHA-256 .* instead of .*: check the repository out"):
        ShippedHead.load(folder, target)


def test_plain_draft_scores_like_its_export(target: LanguageModel, tmp_path: Path) -> None:
    """The restricted draft and the ordinary checkpoint give the scored tokens the same logits."""
    layers_of_target(target.model, (0, 2), SCORED).draft.save(tmp_path / "draft")
    draft = load_plain_draft(tmp_path / "draft", target)
    tokens = torch.randint(48, (1, 7), generator=torch.Generator().manual_seed(2))
    ours = draft.logits(draft.forward(tokens, draft.new_cache(1, 8)).hidden)
    export_plain_draft(tmp_path / "draft", tmp_path / "export", target)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)(tokens).logits
    torch.testing.assert_close(ours[..., SCORED], theirs[..., SCORED], rtol=0.02, atol=2e-3)
    assert (ours[..., 0] == float("-inf")).all()


def test_plain_draft_refuses_a_head(target: LanguageModel, folder: Path) -> None:
    with pytest.raises(ValueError, match="describes a 'draft_head', not a 'plain_draft'"):
        load_plain_draft(folder, target)
