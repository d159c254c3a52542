"""The C++ kernels on a CPU compute what plain PyTorch computes, and a row never depends on the other rows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import needs_kernels, seeded, tiny_llama
from torch.utils import cpp_extension
from transformers import OlmoForCausalLM

from specdec_lib.kernels import build
from specdec_lib.models.engines import kernels
from specdec_lib.models.runner import LanguageModel

HEADS = {  # of queries, of keys and values, and their size
    "two to a key": (4, 2, 32),
    "three to a key": (9, 3, 64),
    "all to one key, more than a tile": (8, 1, 96),
    "each its own, and wide": (2, 2, 320),
}


def with_heads(heads, keys, size):
    shape = {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": size}
    return tiny_llama(hidden_size=32 * heads, initializer_range=0.05, **shape).bfloat16()


@pytest.fixture(scope="module")
def target():
    return LanguageModel(tiny_llama().bfloat16(), "tiny", feature_layers=(0, 1))


@needs_kernels
@pytest.mark.parametrize("rows", [*range(1, 14), 40])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 4), (32, 7), (576, 102), (1536, 64)])
def test_a_product_is_that_of_pytorch(rows, inputs, outputs):
    x = torch.randn(rows, inputs, generator=seeded()).bfloat16()
    weight = torch.randn(outputs, inputs, generator=seeded(1)).bfloat16()
    assert torch.allclose(kernels.linear(x, weight), x.float() @ weight.float().T, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_layers_are_closer_to_float32_than_the_model_in_bfloat16(heads):
    """The kernels round only the inputs of a product to bfloat16, and keep float32 between products."""
    exact = LanguageModel(with_heads(*heads).float(), "float32", feature_layers=(0, 1))
    eager = LanguageModel(with_heads(*heads), "bfloat16", feature_layers=(0, 1), compiled=False)
    ours = LanguageModel(with_heads(*heads), "kernels", feature_layers=(0, 1))
    assert (eager.engine, ours.engine) == ("eager", "kernels")
    tokens = torch.randint(96, (2, 40), generator=seeded())
    steps = [model.forward(tokens, model.new_cache(2, 40)) for model in (exact, eager, ours)]
    logits = [model.logits(step.hidden).float() for model, step in zip((exact, eager, ours), steps, strict=True)]
    assert (logits[2] - logits[0]).norm() < (logits[1] - logits[0]).norm()
    assert (steps[2].features.float() - steps[0].features).norm() < 0.02 * steps[0].features.norm()


@needs_kernels
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_verification_gives_the_logits_of_decoding_bit_for_bit(heads):
    """Five tokens of three rows of unlike lengths, at once and one by one; NaN after a row's last token is not read."""
    target = LanguageModel(with_heads(*heads), "kernels")
    lengths = torch.tensor([70, 3, 33])
    texts, tokens = (torch.randint(96, (3, number), generator=seeded()) for number in (70, 5))
    batch, single = target.new_cache(3, 75), [target.new_cache(1, 75) for _ in range(3)]
    for cache, rows, known in [(batch, texts, lengths), *zip(single, texts.split(1), lengths.split(1), strict=True)]:
        target.forward(rows, cache)
        cache.set_lengths(known, max_length=70)
        for layer in cache.layers:
            for row, length in enumerate(known):
                layer.keys[row, :, length:] = layer.values[row, :, length:] = torch.nan
    verified = target.logits(target.forward(tokens, batch).hidden)
    assert verified.isfinite().all()
    for row, cache in enumerate(single):
        for position in range(5):
            step = target.forward(tokens[row : row + 1, position : position + 1], cache)
            cache.commit(1, at_most=1)
            assert torch.equal(target.logits(step.hidden)[0, 0], verified[row, position])


@needs_kernels
@pytest.mark.parametrize("counts", [[70, 3, 0, 33], [5, 4, 3, 2]], ids=["row by row", "few tokens, at once"])
def test_prompts_are_read_without_their_padding_as_with_it(target, counts):
    tokens = torch.randint(96, (4, 70), generator=seeded())[:, : max(counts)]
    caches = [target.new_cache(4, 80) for _ in range(2)]
    padded, read = target.forward(tokens, caches[0]), target.forward(tokens, caches[1], torch.tensor(counts))
    for row, count in enumerate(counts):
        assert torch.equal(read.hidden[row, :count], padded.hidden[row, :count])
        assert torch.equal(read.features[row, :count], padded.features[row, :count])
        for ours, theirs in zip(caches[1].keys + caches[1].values, caches[0].keys + caches[0].values, strict=True):
            assert torch.equal(ours[row, :, :count], theirs[row, :, :count])
    assert (not read.hidden[1, counts[1] :].any()) == (max(counts) == 70)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_changes_nothing(target, threads):
    tokens, before, logits = torch.randint(96, (2, 20), generator=seeded()), torch.get_num_threads(), []
    for count in (before, threads):
        torch.set_num_threads(count)
        logits.append(target.logits(target.forward(tokens, target.new_cache(2, 20)).hidden))
    torch.set_num_threads(before)
    assert torch.equal(*logits)


@needs_kernels
def test_more_rows_than_32_bits_can_count_in_tiles_are_all_computed():
    x, weight = torch.ones(200_000, 32).bfloat16(), torch.ones(4, 32).bfloat16()
    assert (kernels.linear(x, weight) == 32).all()


@needs_kernels
def test_bad_shapes_and_tokens_are_refused(target):
    x, cache = torch.ones(2, 48).bfloat16(), target.new_cache(1, 8)
    with pytest.raises(RuntimeError, match="a multiple of 32"):
        kernels.linear(x, torch.ones(8, 48).bfloat16())
    with pytest.raises(RuntimeError, match="not empty"):
        kernels.linear(x[:0], torch.ones(8, 48).bfloat16())
    with pytest.raises(RuntimeError, match="a cache of 1 rows do not belong together"):
        target.forward(torch.ones(4, 3, dtype=torch.int64), cache)
    with pytest.raises(IndexError, match="token 96 is none of 96"):
        target.forward(torch.tensor([[96]]), cache)
    target.active_engine.feature_layers = (1, 1)
    with pytest.raises(IndexError, match=r"layer 1 is none of \d, or is named twice"):
        target.forward(torch.ones(1, 1, dtype=torch.int64), cache)
    target.active_engine.feature_layers = (0, 1)


@needs_kernels
def test_feature_layers_are_counted_from_the_end_too():
    tokens, model = torch.arange(6)[None], with_heads(2, 1, 32)
    targets = [LanguageModel(model, "tiny", feature_layers=layers) for layers in ((0, -2), (0, 1))]
    features = [target.forward(tokens, target.new_cache(1, 6)).features for target in targets]
    assert torch.equal(*features)


def test_models_that_the_kernels_cannot_compute_run_eagerly():
    assert LanguageModel(tiny_llama(), "float32").engine == "eager"
    assert LanguageModel(tiny_llama(kind=OlmoForCausalLM).bfloat16(), "layer norms").engine == "eager"
    assert LanguageModel(tiny_llama().bfloat16(), "asked for", compiled=False).engine == "eager"


@pytest.mark.skipif(
    build.instructions() is None or shutil.which(cpp_extension.get_cxx_compiler()) is None,
    reason="neither AVX-512 nor AVX2, or no C++ compiler",
)
def test_the_kernels_compile_where_they_can():
    """Otherwise every other test of them is skipped."""
    assert build.why_no_kernels() is None
    assert build.kernel_facts()["kernels"].startswith("kernels-")


@pytest.mark.skipif(build.instructions() != "avx512", reason="the kernels for AVX2 are those that are tested anyway")
def test_the_kernels_for_avx2_compute_right_on_a_processor_with_avx512_too():
    """PyTorch's own variable limits both, in a process that has loaded neither."""
    here = Path(__file__).parent
    files = [
        __file__,
        here / "test_kernel_families.py",
        here / "test_kernel_head.py",
        here.parent / "decoding" / "test_row_kernels.py",
    ]
    limited = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    tests = [sys.executable, "-m", "pytest", "-q", "-x", *map(str, files)]
    run = subprocess.run(tests, check=False, env=limited, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("used", "has_bfloat16", "has_vnni", "expected"),
    [
        ("AVX512", True, True, "avx512"),
        ("AVX512", False, True, "avx2"),
        ("AVX512", True, False, "avx2"),
        ("AVX2", True, True, "avx2"),
        ("DEFAULT", True, True, None),
    ],
)
def test_the_kernels_use_the_best_that_processor_and_pytorch_have(monkeypatch, used, has_bfloat16, has_vnni, expected):
    monkeypatch.setattr(build.torch.backends.cpu, "get_cpu_capability", lambda: used)
    monkeypatch.setattr(build.torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(build.torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    assert build.instructions() == expected


def test_without_a_working_compiler_plain_pytorch_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "instructions", lambda: "avx2")

    def fails(command, **kwargs):
        raise subprocess.CalledProcessError(1, command, stderr="fatal error: no such header\nmore")

    monkeypatch.setattr(build.subprocess, "run", fails)
    library, reason = build.load.__wrapped__()
    assert library is None
    assert reason == "the CPU kernels do not compile or load: fatal error: no such header"
    assert "plain PyTorch is used instead" in caplog.text
    assert list((tmp_path / "kernels").iterdir()) == []


def test_a_processor_without_avx2_is_named_as_the_reason(monkeypatch):
    monkeypatch.setattr(build, "instructions", lambda: None)
    assert build.load.__wrapped__() == (None, "this processor has no AVX2, or PyTorch may not use it")


def test_the_compiler_may_be_a_command_of_several_words(monkeypatch, tmp_path):
    """As `ccache g++`; nothing is compiled here."""
    commands = []

    def run(command, **options):
        commands.append(command)
        Path(command[command.index("-o") + 1]).touch()

    monkeypatch.setenv("CXX", "ccache 'my g++' -m64")
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    monkeypatch.setattr(build.subprocess, "run", run)
    assert build.compiled_library("avx2").parent == tmp_path / "kernels"
    assert {tuple(command[:3]) for command in commands} == {("ccache", "my g++", "-m64")}
    assert len(commands) == len(build.SOURCES) + 1
