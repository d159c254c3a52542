"""A target spread over two processes says what it says in one; with gloo on a CPU, as NCCL does it on GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import WORDS, write_checkpoint
from tensor_parallel_ranks import everything
from transformers import LlamaConfig, Qwen3Config, Qwen3ForCausalLM

from specdec_lib.models.pair import load_pair
from specdec_lib.models.tensor_parallel import check_heads

ROOT = Path(__file__).resolve().parents[2]
RANKS = Path(__file__).parents[1] / "support" / "tensor_parallel_ranks.py"


def write_qwen(folder, layers):
    """A tiny random Qwen3: it normalises each head, and its output layer is its embedding."""
    write_checkpoint(folder)
    torch.manual_seed(layers)
    geometry = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(
        **geometry, head_dim=8, vocab_size=len(WORDS), num_hidden_layers=layers, tie_word_embeddings=True,
        max_position_embeddings=128,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    heads = {"num_key_value_heads": 2}
    for name, layers in (("target", 2), ("draft", 1)):
        write_checkpoint(root / "llama" / name, layers=layers, **heads)
        write_qwen(root / "qwen" / name, layers)
    return [str(root / "llama"), str(root / "qwen")]


@pytest.fixture(scope="module")
def spread(folders):
    """What each of two processes said."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    places = os.pathsep.join([str(ROOT), str(RANKS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*torchrun, str(RANKS), "2", *folders],
        env=os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((Path(folders[0]).parent / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_say_what_one_says_in_float32(spread, folders):
    """Baseline and speculation, greedy and sampled from the same seed, and transformers.generate.

    Sums in another order differ in the last bits, about 1e-7 of a logit; that one of 250 draws falls into such a gap
    has a chance below 1e-4, and it would be the same draws at every run.
    """
    alone = json.loads(json.dumps(everything(1, folders)))
    assert len(spread) == 2
    for said in spread:
        for folder in folders:
            assert {name: said[folder][name] for name in ("T=0", "T=1")} == {
                name: alone[folder][name] for name in ("T=0", "T=1")
            }
            assert said[folder]["files"] == alone[folder]["files"]


@pytest.mark.slow
def test_each_process_caches_its_own_heads_alone(spread, folders):
    assert {said[folder]["heads"] for said in spread for folder in folders} == {1}


def test_one_process_alone_is_refused_with_the_command(folders):
    with pytest.raises(ValueError, match="there are 1: start them with torchrun --nproc-per-node 2"):
        load_pair(target=folders[0] + "/target", draft=folders[0] + "/draft", tensor_parallel=2)


def test_pairs_made_for_one_device_are_refused():
    with pytest.raises(ValueError, match="smollm2-135m-embedded is made for one device"):
        load_pair("smollm2-135m-embedded", tensor_parallel=2)


def test_heads_that_cannot_be_dealt_out_are_refused():
    with pytest.raises(ValueError, match="has 32 heads and 8 key/value heads: choose a number that divides both"):
        check_heads(LlamaConfig(num_attention_heads=32, num_key_value_heads=8), 16, "somewhere")
