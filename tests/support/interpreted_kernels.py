"""The Triton kernels in Triton's interpreter; run by tests/decoding/test_triton_kernels.py with TRITON_INTERPRET=1."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding import captured_loop
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.ops import PlainOps, TritonOps, choose_ops
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.exactness.adversaries import PROMPTS, adversarial_pairs, enumeration_line
from specdec_lib.exactness.kernel_oracle import CHECKS
from specdec_lib.kernels.gpu import ops as gpu_kernels
from specdec_lib.kernels.gpu import rows, sampling, verification
from specdec_lib.models.toy import toy_draft, toy_model

CPU = torch.device("cpu")
VOCABULARY, BATCH = 5003, 3  # three blocks, of which the last is not full
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy computes -inf minus -inf, and says so


@pytest.fixture(scope="module", autouse=True)
def prepared_once():
    """The interpreter would prepare Triton's language anew at every call of every function."""
    for function in (tl.max, sampling.block_peaks):
        interpreter._patch_lang(function.fn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda function: SimpleNamespace(restore=lambda: None))
        yield


@pytest.fixture
def chosen(monkeypatch):
    """Every call of this test computes with the kernels, in blocks of a few tokens."""
    monkeypatch.setattr(gpu_kernels, "available", lambda device: True)
    monkeypatch.setattr(sampling, "BLOCK", 4)
    monkeypatch.setattr(verification, "BLOCK", 2)


@pytest.mark.parametrize("check", CHECKS)
def test_the_kernels_compute_what_the_plain_operations_do(check):
    assert list(CHECKS[check](TritonOps, CPU, VOCABULARY, BATCH)) == []


RESIDUAL, LIMIT, DRAFTED = (
    "tl.maximum(p - q, 0.0)",
    "end - length + emitted - 1",
    "(chance > 0) & (emitted > 0)[:, None]",
)
AT, NOWHERE = "+ tl.arange(0, BLOCK)\n    weight =", "* 0 + tl.arange(0, BLOCK)\n    weight ="
FEW, MANY = 300, VOCABULARY  # tokens: one block, or several
TWINS = {  # the module, what it says, what a faulty one says, the check that sees it, tokens
    "accepts a token of probability 0": (verification, "uniform < p /", "uniform <= p /", "verification", FEW),
    "resamples from the target": (verification, RESIDUAL, "p", "verification", FEW),
    "resamples from |target - draft|": (verification, RESIDUAL, "tl.abs(p - q)", "verification", FEW),
    "accepts where nothing was drafted": (verification, "(q > 0) & ", "", "verification", FEW),
    "keeps to a residual of nothing": (
        verification,
        "any_left, left, law",
        "any_left, left, left",
        "verification",
        FEW,
    ),
    "draws a token whose end is the number": (sampling, "upto > point", "upto >= point", "draws", FEW),
    "forgets the block's place": (sampling, AT, NOWHERE, "draws", MANY),
    "normalises by one block": (sampling, "tl.sum(parts * ", "tl.max(parts * ", "probabilities", MANY),
    "takes the last of the largest": (sampling, "tl.min(tl.where(known", "tl.max(tl.where(known", "probabilities", FEW),
    "tests the last token before a limit": (rows, LIMIT, LIMIT.removesuffix(" - 1"), "ends of steps", FEW),
    "emits what follows a stop token": (rows, "emitted, first + 1", "emitted, first + 2", "ends of steps", FEW),
    "counts rows that are done": (rows, DRAFTED, "(chance > 0)", "ends of steps", FEW),
}


@pytest.mark.parametrize("fault", TWINS)
def test_a_faulty_kernel_is_caught(fault, monkeypatch, tmp_path):
    """Each is the module as it is but for one expression."""
    module, text, faulty, check, vocab_size = TWINS[fault]
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert text in source
    path = tmp_path / "faulty.py"
    path.write_text(source.replace(text, faulty), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("faulty", path)
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    monkeypatch.setitem(sys.modules, module.__name__, twin)
    assert any(CHECKS[check](TritonOps, CPU, vocab_size, 2))


def test_toys_are_enumerated_without_an_error(chosen):
    """The law of the output is the target's, and kernels and plain operations decide alike on every path."""
    pair = adversarial_pairs()["random"]
    assert isinstance(choose_ops(pair.target, SamplingConfig()), TritonOps)
    with torch.no_grad():
        line = enumeration_line(pair, ModelProposer(pair.draft), PROMPTS[:1], 1, SamplingConfig())
    assert line["paths"] == 57
    assert line["unexplained"] == 0
    assert line["largest_error"] < 1e-15


TARGET = toy_model(7, torch.Generator().manual_seed(0))
DRAFT = toy_draft(TARGET, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sampling_config", [SamplingConfig(0), SamplingConfig(), SamplingConfig(0.8, top_k=3)])
def test_whole_calls_give_the_same_tokens_and_counts(sampling_config, chosen):
    outcomes = [decode(ops(sampling_config)) for ops in (TritonOps, PlainOps)]
    assert outcomes[0] == outcomes[1]


def test_captured_steps_give_the_same_tokens_and_counts(chosen, recorder):
    expected = decode(PlainOps(SamplingConfig()))
    captured_loop.drop_captured(TARGET)
    assert decode(TritonOps(SamplingConfig())) == expected
    assert recorder.replays > 0


def decode(ops):
    """Tokens and counts of ragged rows that stop by themselves, with speculation and without."""
    given = {"max_new_tokens": 8, "sampling": ops.sampling, "stop_token_ids": (3,), "ops": ops}
    prompts = [[1], [2, 0, 5], [4, 4]]
    first = speculative_decode(
        TARGET, ModelProposer(DRAFT), prompts, num_draft_tokens=2, generator=torch.Generator().manual_seed(0), **given
    )
    other = autoregressive_decode(TARGET, prompts, generator=torch.Generator().manual_seed(0), **given)
    tokens = [row.tolist() for result in (first, other) for row in result.tokens]
    return tokens, first.steps, first.drafted, first.tested_by_position, first.accepted_by_position
