"""Subjects of other engines: what we do to an engine before it is tested. Stand-ins play what is not installed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specdec_lib.exactness.league.subject import known_subjects
from specdec_lib.exactness.league.tiny_models import tiny_models
from specdec_lib.exactness.subjects import openvino_subject, vllm_subject


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECDEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tiny_models()


def test_the_mended_function_of_vllm_gives_each_position_its_requests_value():
    """Temperature 0 stands for greedy requests, whose logits are not to be divided by it."""
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)  # drafts of 2, 0 and 3 tokens
    temperatures = vllm_subject._expanded(torch.tensor([0.7, 0.5, 0.0]), ends, 5, replace_from=0, replace_to=1)
    assert torch.equal(temperatures, torch.tensor([0.7, 0.7, 1.0, 1.0, 1.0]))
    top_k = vllm_subject._expanded(torch.tensor([3, 8, 5], dtype=torch.int32), ends, 5)
    assert top_k.tolist() == [3, 3, 5, 5, 5]
    assert top_k.dtype == torch.int32


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_draft_head_for_vllm_has_one_layer_of_the_draft(models, kind):
    draft = Path(models["checkpoint"]["draft"])
    head = Path(vllm_subject._head(draft, kind))
    weights, config = load_file(head / "model.safetensors"), json.loads((head / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert weights["fc.weight"].shape == (64, 128)
    given, layer = load_file(draft / "model.safetensors"), {"eagle": "layers.0.", "eagle3": "midlayer."}[kind]
    assert torch.equal(weights[layer + "mlp.up_proj.weight"], given["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("module", [openvino_subject, vllm_subject])
def test_the_smallest_example_of_a_biased_line_is_a_program(models, module):
    """One for each way that could need one, with the line's own numbers in it."""
    reads = {subject.name: subject.reads for subject in known_subjects()}
    for subject in module.SUBJECTS:
        for way in subject["ways"]:
            if "untestable" not in way and way.get("report"):
                given = {"options": {}} | way
                text = module.script(given, models[reads[subject["name"]]], 2, 0.7, 3, 0.95, 1234)
                compile(text, "script", "exec")
                assert "1234" in text
                assert "0.7" in text
