"""A pair of GGUF files by path: dequantised once, their precision in every row; what would be left out is refused."""

import json

import gguf
import pytest
import torch
from checkpoints import write_grouped_checkpoint
from safetensors.torch import load_file
from transformers import AutoConfig

from specdec_lib import ModelProposer, SamplingConfig, autoregressive_decode, load_pair, speculative_decode
from specdec_lib.models.loading import gguf_files
from specdec_lib.models.loading.gguf_writing import write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dense(tmp_path):
    return write_grouped_checkpoint(tmp_path / "dense")


@pytest.fixture
def file(dense, tmp_path):
    (tmp_path / "models").mkdir()
    write_gguf(dense, tmp_path / "models" / "tiny.gguf", torch.bfloat16)
    scores = [0.0] * 40  # transformers wants merges or scores, and these words have neither
    return rewritten(tmp_path / "models" / "tiny.gguf", **{"tokenizer.ggml.scores": scores}).replace(
        tmp_path / "tiny.gguf"
    )


def rewritten(file, tensors=lambda name, data: data, **settings):
    """The same file with other tensors (None leaves one out) and further settings, under the name `other.gguf`."""
    reader, other = gguf.GGUFReader(file), file.with_name("other.gguf")
    writer = gguf.GGUFWriter(str(other), "llama")
    for field in reader.fields.values():
        kind = field.types[0] if field.types else None
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", *settings):
            sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)
    for name, value in settings.items():
        kind = gguf.GGUFValueType.get_type(value)
        sub_type = gguf.GGUFValueType.FLOAT32 if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type=sub_type)
    for tensor in reader.tensors:
        if (data := tensors(tensor.name, tensor.data)) is not None:
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return other


def test_a_file_decodes_as_the_checkpoint_that_it_was_made_of(file, dense, cache):
    pair, known = load_pair(target=file, draft=file), load_pair(target=dense, draft=dense)
    assert pair.target_id == pair.draft_id == "tiny.gguf (BF16 as bfloat16)"
    assert list(pair.files) == ["tiny.gguf (BF16 as bfloat16)/model.safetensors"]
    (folder,) = (cache / "gguf").iterdir()
    ours, theirs = load_file(folder / "model.safetensors"), load_file(dense / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    greedy = {"max_new_tokens": 8, "sampling": SamplingConfig(0)}
    expected = autoregressive_decode(known.target, [[3, 4]], **greedy).tokens[0]
    found = speculative_decode(pair.target, ModelProposer(pair.draft), [[3, 4]], num_draft_tokens=2, **greedy)
    assert found.tokens[0].tolist() == expected.tolist()
    assert known.tokenizer.get_vocab().items() <= pair.tokenizer.get_vocab().items()


def test_it_is_dequantised_once_and_again_when_it_changes(file, cache, monkeypatch):
    first = gguf_files.dense_checkpoint(file)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_files, "dequantise", lambda *_: pytest.fail("dequantised again"))
        assert gguf_files.dense_checkpoint(file) == first
    other = rewritten(file, lambda name, data: data * 0 if name == "output_norm.weight" else data)
    assert gguf_files.dense_checkpoint(other) != first
    assert not [path for path in (cache / "gguf").iterdir() if path.name.startswith("making-")]


def test_the_precision_of_its_matrices_is_named(file):
    folder = gguf_files.dense_checkpoint(file)
    assert gguf_files.precision_of(folder) == "BF16 as bfloat16"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def dropped(which):
    return lambda name, data: None if name == which else data


@pytest.mark.parametrize(
    ("tensors", "settings", "reason"),
    [
        (dropped("blk.1.ffn_up.weight"), {}, r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
        (None, {"llama.rope.scaling.type": "yarn"}, "leave out llama.rope.scaling.type = yarn"),
        (None, {"llama.attention.scale": 0.25}, "leave out llama.attention.scale = 0.25"),
        (None, {"general.architecture": "of-next-year"}, "of-next-year"),
    ],
)
def test_what_would_be_missing_is_refused_by_name(tensors, settings, reason, file):
    other = rewritten(file, tensors or (lambda name, data: data), **settings)
    with pytest.raises(
        ValueError, match=rf"other\.gguf cannot be read as a whole \(.*{reason}.*\): give safetens"
    ) as e:
        load_pair(target=other, draft=other)
    assert "\n" not in str(e.value)


def test_factors_of_positions_are_refused_by_name(file):
    """As Llama 3.1 has them: transformers reads no such tensor, and its positions would be others."""
    names = [*(tensor.name for tensor in gguf.GGUFReader(file).tensors), "rope_freqs.weight"]
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    assert [*gguf_files._unread_tensors(names, "llama", config)] == ["rope_freqs.weight"]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no such format at all"])
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.gguf cannot be read as a whole .*: give safetensors of") as refusal:
        load_pair(target=tmp_path / "bad.gguf", draft=tmp_path / "bad.gguf")
    assert "\n" not in str(refusal.value)


def test_a_truncated_file_is_one_line(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"tiny\.gguf cannot be read as a whole"):
        load_pair(target=file, draft=file)


def test_a_file_that_is_not_there_and_a_part_of_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.gguf is no file: give the path of a GGUF file, or of a folder"):
        load_pair(target="none.gguf", draft="none.gguf")
    part = tmp_path / "model-00001-of-00003.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"is a part of a model: merge all with llama-gguf-split --merge"):
        load_pair(target=part, draft=part)
