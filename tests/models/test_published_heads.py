"""Published draft heads compute what the package `speculators` does, and are refused by name where they cannot.

What `speculators` computed with tiny random heads is in `support/recorded_heads`; `support/record_heads.py` says how.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from specdec_lib import ModelProposer, SamplingConfig, autoregressive_decode, load_pair, speculative_decode
from specdec_lib.models import pair as pair_module
from specdec_lib.models.loading.checkpoints import config_of
from specdec_lib.models.loading.presets import Checkpoint
from specdec_lib.models.published.load import check_head
from specdec_lib.models.shape import ModelShape
from specdec_lib.peers.ways import same_draft_pair

RECORDED = Path(__file__).parent.parent / "support" / "recorded_heads"
HEADS = sorted(folder.name for folder in RECORDED.iterdir() if folder.is_dir())
PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2]), torch.tensor([6, 5, 3, 5, 8, 9, 7, 9])]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A Llama of 6 layers, 40 tokens and width 16, for which the heads are."""
    return write_checkpoint(tmp_path_factory.mktemp("somebody") / "tiny-target", layers=6)


@pytest.fixture
def head(tmp_path):
    """A copy of the plainest head, for changes."""
    return Path(shutil.copytree(RECORDED / "eagle3", tmp_path / "head"))


def load(target, head, **options):
    return load_pair(target=target, draft=head, dtype="float32", **options)


def change_config(head, **changes):
    path = head / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(head, change):
    path = head / "model.safetensors"
    save_file(change(load_file(path)), path)


def older_layout(head, tensors_of):
    """The same head as EAGLE's authors publish theirs; `tensors_of` writes its tensors."""
    said = json.loads((head / "config.json").read_text())
    flat = said["transformer_layer_config"] | {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 24}
    (head / "config.json").write_text(json.dumps(flat | {"eagle_aux_hidden_state_layer_ids": [1, 2, 4]}))
    tensors = load_file(head / "model.safetensors")
    (head / "model.safetensors").unlink()
    tensors_of({name.replace("layers.0", "midlayer"): tensor for name, tensor in tensors.items()})


def step_by_step(head, recorded, anchor, steps):
    """The logits after the first `anchor` + 1 pairs, and after each of `steps` - 1 drafted positions."""
    tokens, states = recorded["tokens"], recorded["states"]
    cache = head.new_cache(1, 32)
    unread = states.new_full((1, states.shape[1], 16), torch.nan)  # the target's last state, which only MTP reads
    features = torch.cat([states, unread], dim=2) if head.feature_layers else states
    hidden = head.forward(tokens[:, : anchor + 1], head.fuse(features[:, : anchor + 1]), cache)[:, -1:]
    cache.commit(anchor + 1, at_most=anchor + 1)
    logits = [head.scores(hidden)[0, 0]]
    if head.parallel:
        return list(head.scores(head.in_one_pass(hidden, tokens[:, anchor : anchor + 1], steps, cache))[0])
    for step in range(1, steps):
        hidden = head.forward(tokens[:, anchor + step : anchor + step + 1], hidden, cache)
        cache.commit(1, at_most=1)
        logits.append(head.scores(hidden)[0, 0])
    return logits


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_those_of_speculators_step_by_step(name, target):
    """Ours read pair after pair; theirs are unrolled over all positions at once, as in training."""
    recorded = load_file(RECORDED / f"{name}.safetensors")
    head = load(target, RECORDED / name).draft
    for rows in {"embeddings", "output_rows"} & recorded.keys():  # of a head without any, the target's
        setattr(head, rows, recorded[rows])
    for anchor in (0, 4, 9):
        for step, ours in enumerate(step_by_step(head, recorded, anchor, steps=1 if "mtp" in name else 3)):
            torch.testing.assert_close(ours, recorded[f"logits.{step}"][0, anchor], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flag", ["norm_before_residual", "norm_output"])
def test_a_flag_that_is_read_wrongly_is_noticed(flag, target, head):
    change_config(head, **{flag: True})
    recorded = load_file(RECORDED / "eagle3.safetensors")
    *_, last = step_by_step(load(target, head).draft, recorded, 4, steps=3)
    assert (last - recorded["logits.2"][0, 4]).abs().max() > 0.1


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_the_older_layout_is_the_same_head(form, target, head):
    save = {"model.safetensors": save_file, "pytorch_model.bin": torch.save}[form]
    older_layout(head, lambda tensors: save(tensors, head / form))
    pair = load(target, head)
    assert [name.split("/")[-1] for name in pair.files] == ["model.safetensors", form]
    recorded = load_file(RECORDED / "eagle3.safetensors")
    for step, ours in enumerate(step_by_step(pair.draft, recorded, 4, steps=3)):
        torch.testing.assert_close(ours, recorded[f"logits.{step}"][0, 4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nested", [True, False])
def test_dflash_in_its_authors_layout_is_the_same_head(nested, target, tmp_path):
    """They count the target's layers by their outputs, and leave token rows to the target."""
    head = Path(shutil.copytree(RECORDED / "dflash", tmp_path / "head"))
    said = json.loads((head / "config.json").read_text())["transformer_layer_config"]
    own = {"mask_token_id": 39, "target_layer_ids": [0, 1, 3]}
    own = {"dflash_config": own} if nested else own
    own |= {"architectures": ["DFlashDraftModel"], "block_size": 4}
    (head / "config.json").write_text(json.dumps(said | own))
    names = ("fc.", "hidden_norm.", "norm.", "layers.")
    change_tensors(head, lambda tensors: {name: t for name, t in tensors.items() if name.startswith(names)})
    ours, theirs = load(target, head), load(target, RECORDED / "dflash")
    recorded = load_file(RECORDED / "dflash.safetensors")
    outputs = []
    for each in (ours.draft, theirs.draft):
        each.embeddings = recorded["embeddings"]
        cache = each.new_cache(1, 32)
        features = torch.cat([recorded["states"], recorded["states"][:, :, :16]], dim=2)
        hidden = each.forward(recorded["tokens"], each.fuse(features), cache)
        cache.commit(12, at_most=12)
        outputs.append(each.in_one_pass(hidden[:, -1:], recorded["tokens"][:, -1:], 3, cache))
    assert ours.draft.feature_layers == theirs.draft.feature_layers == (0, 1, 3)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", HEADS)
def test_a_pair_with_a_head_decodes_like_its_target(name, target):
    """Ragged rows, greedy; sampled texts are enumerated in `decoding/test_published_drafting.py`."""
    pair = load(target, RECORDED / name)
    greedy = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=0)}
    expected = autoregressive_decode(pair.target, PROMPTS, **greedy).tokens
    found = speculative_decode(pair.target, ModelProposer(pair.draft), PROMPTS, num_draft_tokens=3, **greedy)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected]
    assert found.drafted > 0


def test_only_tokens_of_the_reduced_vocabulary_are_drafted(target):
    mapping = load_file(RECORDED / "eagle3" / "model.safetensors")["d2t"]
    pair = load(target, RECORDED / "eagle3")
    assert pair.draft.scored_ids.tolist() == (torch.arange(24) + mapping).tolist()
    assert ModelShape.of(pair.draft).output_weights == 24 * 16


def test_a_head_without_token_rows_has_its_target_s(target, head):
    change_tensors(
        head, lambda tensors: {n: t for n, t in tensors.items() if n not in ("embed_tokens.weight", "lm_head.weight")}
    )
    pair = load(target, head)
    weights = pair.target.model.get_input_embeddings().weight
    assert torch.equal(pair.draft.embeddings, weights)
    assert torch.equal(pair.draft.output_rows, pair.target.head.weight[pair.draft.scored_ids])


def test_a_head_made_for_another_target_is_noticed(target, head, caplog):
    load(target, head)
    assert not caplog.records
    change_config(head, speculators_config={"verifier": {"name_or_path": "somebody/other-target"}})
    load(target, head)
    assert "was made for somebody/other-target" in caplog.text


def qwen_name(name):
    """As a checkpoint of Qwen3.5 calls a tensor of a layer that `speculators` saved."""
    part = name.removeprefix("mtp_layers.0.").removesuffix(".weight")
    names = {"input_proj": "fc", "final_layernorm": "norm", "token_layernorm": "pre_fc_norm_embedding"}
    names |= {"hidden_layernorm": "pre_fc_norm_hidden"}
    return f"mtp.{names.get(part, f'layers.0.{part}')}.weight"


def write_qwen(folder):
    """A tiny Qwen3.5 of 4 layers, with a layer for multi-token prediction in its own files; returns the folder."""
    write_checkpoint(folder)  # for its tokenizer
    config = json.loads((RECORDED / "mtp-gated" / "config.json").read_text())["transformer_layer_config"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3_5ForCausalLM(Qwen3_5TextConfig(**config)).save_pretrained(folder)
    layer = load_file(RECORDED / "mtp-gated" / "model.safetensors")
    layer = {qwen_name(name): tensor for name, tensor in layer.items() if name.startswith("mtp_layers.")}
    change_tensors(folder, lambda tensors: tensors | layer)
    return folder


def test_a_layer_in_the_target_s_own_checkpoint_drafts(tmp_path):
    folder = write_qwen(tmp_path / "qwen")
    pair, separate = load(folder, "mtp"), load(folder, RECORDED / "mtp-gated")
    assert (pair.draft_id, pair.files) == ("mtp", {k: v for k, v in separate.files.items() if k.startswith("qwen")})
    greedy = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=0)}
    expected = autoregressive_decode(pair.target, PROMPTS, **greedy).tokens
    for each in (pair, separate):
        found = speculative_decode(each.target, ModelProposer(each.draft), PROMPTS, num_draft_tokens=3, **greedy)
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected]
    ours, theirs = pair.draft.state_dict(), separate.draft.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_target_without_such_a_layer_is_refused(target, tmp_path):
    with pytest.raises(ValueError, match=r"mtp lacks layers.0.final_layernorm.weight, .*: its files do not fit"):
        load(target, "mtp")


def smaller(name, size=8):
    return lambda tensors: tensors | {name: tensors[name][:size].clone()}


REFUSED = {
    "another kind": (
        lambda head: change_config(head, speculators_model_type="xpress"),
        r"head is a draft head of the kind 'xpress': served are eagle3, peagle, mtp, dflash of",
    ),
    "medusa": (
        lambda head: (head / "config.json").write_text('{"medusa_num_heads": 4}'),
        "of the kind 'medusa': served are eagle3, peagle, mtp, dflash of",
    ),
    "another width": (
        lambda head: change_config(head, target_hidden_size=32),
        "made for a target of width 32 and 40 tokens, but this one has 16 and 40: .*own target, somebody/tiny-target",
    ),
    "too deep": (
        lambda head: change_config(head, eagle_aux_hidden_state_layer_ids=[1, 2, 6]),
        r"reads the inputs of layers \[1, 2, 6\] of a target with 6: choose a head that reads those of layers 1 to 5",
    ),
    "no mask token": (
        lambda head: change_config(head, speculators_model_type="peagle"),
        "mask_token_id is None in its config.json: write there the id, below 40",
    ),
    "no block": (
        lambda head: change_config(head, speculators_model_type="dflash", mask_token_id=1),
        "block_size is None, sample_from_anchor is False, layers are llama: choose a DFlash head of qwen3 layers",
    ),
    "other layers": (
        lambda head: change_config(head, transformer_layer_config={"model_type": "gemma3_text"}),
        "decoder layers of type 'gemma3_text': choose a head with layers of llama, qwen3, qwen3_5_text",
    ),
    "a missing tensor": (
        lambda head: change_tensors(head, lambda tensors: {n: t for n, t in tensors.items() if n != "fc.weight"}),
        r"head lacks fc.weight: its files do not fit its config.json",
    ),
    "another tensor": (
        lambda head: change_tensors(head, lambda tensors: tensors | {"more.weight": tensors["fc.weight"].clone()}),
        r"has more than its layout: more.weight",
    ),
    "another shape": (
        lambda head: change_tensors(head, smaller("lm_head.weight")),
        r"has in another shape lm_head.weight \(\[8, 16\] instead of \[24, 16\]\)",
    ),
    "a token twice": (
        lambda head: change_tensors(head, lambda tensors: tensors | {"d2t": -torch.arange(24)}),
        "its d2t names a token twice",
    ),
    "a token outside": (
        lambda head: change_tensors(head, lambda tensors: tensors | {"d2t": torch.full((24,), 17)}),
        "outside the target's vocabulary of 40",
    ),
    "a truncated file": (
        lambda head: (head / "model.safetensors").write_bytes((head / "model.safetensors").read_bytes()[:-100]),
        "is damaged or truncated",
    ),
    "a truncated pickle": (
        lambda head: older_layout(head, lambda tensors: (head / "pytorch_model.bin").write_bytes(b"PK")),
        "pytorch_model.bin is damaged or truncated .*: delete it and fetch it again",
    ),
}


@pytest.mark.parametrize(("break_it", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_draft_is_refused_in_one_line_before_weights_are_read(break_it, message, target, head, monkeypatch):
    monkeypatch.setattr(pair_module, "load_language_model", lambda *given, **options: pytest.fail("weights were read"))
    break_it(head)
    with pytest.raises(ValueError, match=message) as refusal:
        load(target, head)
    assert "\n" not in str(refusal.value)


def test_a_head_needs_its_target_on_one_device(target, head):
    with pytest.raises(ValueError, match="tensor_parallel is 2: a draft head needs the target on one device, give 1"):
        check_head(Checkpoint(str(head)), Checkpoint(target), None, tensor_parallel=2)


def test_random_weights_are_those_of_models(head):
    with pytest.raises(ValueError, match=r"makes models, and .*head is a draft head: give the folder of a model"):
        config_of(str(head))


def test_no_peer_is_compared_with_a_head(target, head):
    with pytest.raises(ValueError, match="is a draft head, with which no peer is compared: give a draft model"):
        same_draft_pair(load(target, head))
