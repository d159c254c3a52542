"""Drafting with published heads is exact: enumerated, in captured steps, and from a cache that was rolled back."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from specdec_lib import ModelProposer, SamplingConfig, load_pair, speculative_decode
from specdec_lib.decoding.proposers.composite import CompositeProposer
from specdec_lib.exactness import mutants
from specdec_lib.exactness.enumeration import enumerate_output
from specdec_lib.exactness.target_law import target_law
from specdec_lib.models.attention import our_attention
from specdec_lib.models.loading.checkpoints import random_model
from specdec_lib.models.loading.presets import Checkpoint
from specdec_lib.models.published.load import fetch_head
from specdec_lib.models.runner import LanguageModel
from specdec_lib.params_files import load_params
from specdec_lib.study.dry_run.fake_gpu import fake_gpu

RECORDED = Path(__file__).parent.parent / "support" / "recorded_heads"
HEADS = ["eagle3", "peagle", "mtp", "dflash"]
TEXTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2]), torch.tensor([6, 5, 3, 5, 8, 9, 7, 9])]
FILTERS = {1: SamplingConfig(1.3, top_k=3), 2: SamplingConfig(0.7, top_k=2, top_p=0.9)}  # by gamma


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("somebody") / "tiny-target", layers=6, initializer_range=0.2)


def precise_pair(folder, name):
    """Target and head in float64, so that a law has no rounding."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation=our_attention())
    head = fetch_head(Checkpoint(str(RECORDED / name)), Checkpoint(folder), model.config)
    target = LanguageModel(model, "tiny", head.config.feature_layers)
    return target, head.load(target)


def enumerated(target, head, gamma, verification="token"):
    """The largest error of a text's probability, and the share of the volume that is unexplained."""
    prompt, sampling = torch.tensor([3, 1]), FILTERS[gamma]
    options = {"max_new_tokens": gamma + 2, "num_draft_tokens": gamma, "sampling": sampling}
    found = enumerate_output(target, ModelProposer(head), [prompt], verification=verification, **options)
    return found.error([target_law(target, prompt, sampling, gamma + 2)]), found.unexplained


@pytest.mark.parametrize("gamma", FILTERS)
@pytest.mark.parametrize("name", HEADS)
def test_the_law_of_every_path_is_the_target_s(name, gamma, folder):
    error, unexplained = enumerated(*precise_pair(folder, name), gamma)
    assert error < 1e-12
    assert unexplained == 0


def test_a_rule_without_residual_is_noticed(folder):
    error, _ = enumerated(*precise_pair(folder, "eagle3"), 1, mutants.without_residual)
    assert error > 1e-3


@pytest.mark.parametrize("name", HEADS)
def test_a_step_could_be_captured_on_a_gpu(name, folder):
    """On a device without contents, which refuses values on the host, mixed devices and a float32 product."""
    config = AutoConfig.from_pretrained(folder)
    head = fetch_head(Checkpoint(str(RECORDED / name)), Checkpoint(folder), config)
    with fake_gpu(load_params("h100")) as device:
        device.precision = torch.bfloat16
        model = random_model("tiny", config, "cuda", "bfloat16", 0).model
        target = LanguageModel(model, "tiny", head.config.feature_layers)
        target.compile()
        options = {"max_new_tokens": 9, "num_draft_tokens": 3, "sampling": SamplingConfig()}
        generator = torch.Generator().manual_seed(0)
        speculative_decode(target, ModelProposer(head.load(target)), TEXTS, generator=generator, **options)
        assert device.captures == 1


def test_a_block_holds_no_more_tokens_than_it_was_trained_with(folder):
    pair = load_pair(target=folder, draft=RECORDED / "dflash", dtype="float32")
    with pytest.raises(ValueError, match=r"num_draft_tokens is 4: .*dflash drafts at most 3 in its block of 4, give"):
        decode(pair, ModelProposer(pair.draft), SamplingConfig(0), num_draft_tokens=4)


def decode(pair, proposer, sampling, **more):
    options = {"max_new_tokens": 14, "num_draft_tokens": 3, "sampling": sampling} | more
    result = speculative_decode(pair.target, proposer, TEXTS, generator=torch.Generator().manual_seed(3), **options)
    return [row.tolist() for row in result.tokens], result.accepted_by_position


@pytest.mark.parametrize("name", HEADS)
def test_captured_steps_give_the_same(name, folder, request):
    def run():
        pair = load_pair(target=folder, draft=RECORDED / name, dtype="float32")
        proposers = [ModelProposer(pair.draft), CompositeProposer(ModelProposer(pair.draft))]
        samplings = [SamplingConfig(0), SamplingConfig(), SamplingConfig(0.7, top_k=9, top_p=0.8)]
        return [decode(pair, each, sampling) for each in proposers for sampling in samplings]

    expected = run()
    recorder = request.getfixturevalue("recorder")
    assert run() == expected
    assert recorder.replays > recorder.captures > 0
