"""The GPU studies before a GPU is paid for: each preset's pair in miniature, from params to reports and comparison.

A miniature has the architecture that `hardware/models.yaml` states and the rope and norms of the hub's config.json,
with one layer of small width and random weights. So its numbers mean nothing, and whether everything takes them is
what is tested. Notebooks run in kernels, and sweeps in workers, that capture their steps on the CPU as CUDA graphs
are captured (`recording_process`).
"""

import functools
import json

import pytest
import torch
import transformers
from quick_kernel import kernels
from recording_process import command
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from specdec_lib.analysis.step_table import read_step_costs
from specdec_lib.cli.commands import check_study
from specdec_lib.config import CUSTOM_PAIR, SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.methods import make_proposer
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.loading.checkpoints import config_of
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.models.loading.tested_architectures import READ
from specdec_lib.models.pair import load_pair
from specdec_lib.params_files import load_params
from specdec_lib.report.pages import COMPARISON, STUDY, make_comparison, make_reports
from specdec_lib.study.prompt_file import Prompt
from specdec_lib.study.prompts import encode_prompts, load_prompts
from specdec_lib.study.rows.table import read_results
from specdec_lib.study.transformers_generate import transformers_decode

STUDIES = [("h100", "qwen3-8b"), ("a100", "llama-3.1-8b"), ("h200", "smollm2-1.7b")]  # params, pair in miniature
DENSE = ("qwen3-8b", "qwen3-32b", "qwen3-32b-1.7b", "llama-3.1-8b", "smollm2-1.7b")  # presets of these architectures
PADDED_APART = "qwen3-8b, padded apart"
TOKENS = 300  # of the tokenizer
ROWS = {"qwen3-8b": (320, 320), "qwen3-32b": (320, 320), "qwen3-32b-1.7b": (320, 320), PADDED_APART: (336, 320)}
CUT = {
    "num_draft_tokens": [1, 2], "headline_num_draft_tokens": 2, "batch_sizes": [1, 2], "prompt_tokens": [0, 64],
    "max_new_tokens": [6], "num_prompts": 1, "repetitions": 1, "correctness_samples": 40,
}  # fmt: skip
ONE_POINT = {  # axes and all methods are the first study's
    "num_draft_tokens": [2], "batch_sizes": [2], "prompt_tokens": [0], "methods": ["draft", "ngram"],
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0}
LLAMA3 |= {"original_max_position_embeddings": 64}  # 8,192 in full size
FAMILY = {  # what config.json on the hub says beside the geometry
    "qwen3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "rms_norm_eps": 1e-6},
    "llama-3.1": {"rope_parameters": LLAMA3 | {"factor": 8.0}, "rms_norm_eps": 1e-5},
    "llama-3.2": {"rope_parameters": LLAMA3 | {"factor": 32.0}, "rms_norm_eps": 1e-5},
    "smollm2": {"rope_parameters": {"rope_type": "default", "rope_theta": 130000.0}, "rms_norm_eps": 1e-5},
}


def miniature(name, rows):
    """The config of a model in `hardware/models.yaml` at a small width: two heads of keys and values, in its groups."""
    real = config_of(name)
    heads = 2 * real.num_attention_heads // real.num_key_value_heads
    wider = real.head_dim * real.num_attention_heads != real.hidden_size  # attention than the model, as in Qwen3-0.6B
    sizes = {"hidden_size": 8 * heads, "intermediate_size": 16 * heads, "head_dim": 16 if wider else 8}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": rows}
    more = {"max_position_embeddings": 2048, "initializer_range": 0.3}
    return transformers.AutoConfig.for_model(
        real.model_type, tie_word_embeddings=real.tie_word_embeddings, **FAMILY[name.rsplit("-", 1)[0]], **sizes, **more
    )


def tokenizer():
    """Byte pairs of the shipped prompts, as Qwen and Llama split text, with the chat format of Qwen and SmolLM2."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|im_start|>", "<|im_end|>"]
    told = {"vocab_size": TOKENS, "initial_alphabet": alphabet, "special_tokens": special, "show_progress": False}
    made.train_from_iterator([prompt.text for prompt in load_prompts("mixed")], trainers.BpeTrainer(**told))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=special[1], pad_token=special[1], chat_template=template
    )


def write_pair(folder, preset):
    """The miniature of a preset's pair as checkpoints; returns where target and draft are."""
    places, sizes = [], ROWS.get(preset, (TOKENS, TOKENS))  # of the embeddings: Qwen's have more than there are tokens
    for seed, (name, rows) in enumerate(zip(PRESETS[preset.split(",")[0]], sizes, strict=True)):
        where = folder / f"{preset} {seed}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformers.AutoModelForCausalLM.from_config(miniature(name, rows)).save_pretrained(where)
        tokenizer().save_pretrained(where)
        places.append(str(where))
    return places


def test_every_gpu_study_has_a_miniature_and_every_architecture_is_in_one():
    """A pair of another architecture is not left out."""

    def kinds(presets):
        configs = [config_of(name) for preset in presets for name in PRESETS[preset]]
        return {(config.model_type, config.tie_word_embeddings) for config in configs}

    assert kinds(DENSE) == kinds(preset for _, preset in STUDIES)
    assert {name.rsplit("-", 1)[0] for preset in DENSE for name in PRESETS[preset]} == FAMILY.keys()
    others = {config_of(name).model_type for pair in PRESETS.values() for name in pair} - {t for t, _ in kinds(DENSE)}
    assert others <= {name for types in READ.values() for name in types}  # in tests/models/test_architectures.py


@pytest.mark.parametrize("preset", [*DENSE, PADDED_APART])
def test_every_preset_decodes_exactly_with_captured_steps(preset, tmp_path, recorder, monkeypatch):
    """In float32, by every method: the tokens that transformers makes, also with the pair's own draft."""
    monkeypatch.setattr(KernelEngine, "can_compute", staticmethod(lambda body: False))
    target, draft = write_pair(tmp_path, preset)
    pair = load_pair(target=target, draft=draft, dtype="float32")
    prompts = encode_prompts([Prompt("a", "a", "yes, no, yes, no"), Prompt("b", "b", "Monday")], pair.tokenizer, 0)
    greedy = {"max_new_tokens": 9, "sampling": SamplingConfig(temperature=0)}
    made = [autoregressive_decode(pair.target, prompts, **greedy).tokens]
    for method in ("draft", "ngram", "composite"):
        proposer = make_proposer(method, pair)
        made.append(speculative_decode(pair.target, proposer, prompts, num_draft_tokens=3, **greedy).tokens)
    expected = transformers_decode(pair.target, prompts, seed=0, **greedy).tokens
    for tokens in made:
        assert [row.tolist() for row in tokens] == [row.tolist() for row in expected]
    assert recorder.replays
    if preset != PADDED_APART:  # transformers drafts only at the target's width
        assisted = transformers_decode(
            pair.target, [prompts[0]], seed=0, **greedy, assistant_model=pair.draft.model
        ).tokens
        assert assisted[0].tolist() == expected[0].tolist()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def study(outputs):
    """Runs the study of a GPU once, and returns its folder and params.

    Notebooks run in kernels that capture steps, and so do the sweeps in them.
    """

    @functools.cache
    def run(gpu):
        target, draft = write_pair(outputs.parent, dict(STUDIES)[gpu])
        here = {"device": "cpu", "device_name": "", "pair": CUSTOM_PAIR, "target": target, "draft": draft}
        params = load_params(gpu, here | CUT | (ONE_POINT if gpu != STUDIES[0][0] else {}))
        check_study(params)
        return make_reports(params, outputs).parent, params

    with pytest.MonkeyPatch.context() as patch:
        kernels(patch, command("kernel"))
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("gpu", dict(STUDIES))
def test_a_whole_study(gpu, study):
    folder, params = study(gpu)
    assert {page.stem for page in (folder / "reports").glob("*.html")} == set(STUDY)

    rows = read_results(folder)
    assert set(rows["status"]) == {"ok"}
    assert set(rows["method"]) == {"autoregressive", *params.methods}
    assert rows.loc[rows["engine"] == "specdec_lib", "replayed"].all()
    assert set(rows["engine"]) == {"specdec_lib", "transformers"}

    certificate = json.loads((folder / "exactness.json").read_text(encoding="utf-8"))
    assert certificate["passed"], certificate["failures"]
    assert any("float32, eager, captured steps" in path for path in certificate["tests"]["path"])
    greedy = {f"{dtype}, eager, captured steps" for dtype in ("float32", "bfloat16")}
    assert set(certificate["greedy"]["path"]) == greedy

    costs = read_step_costs(folder)
    assert {"target", "draft", "ngram", "sampling"} == set(costs["model"])
    assert costs.loc[costs["model"] != "ngram", "replayed"].all()
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["engine"]["graphs"].startswith("captured")


@pytest.mark.slow
def test_the_studies_are_compared(study, outputs):
    gpus = [study(gpu)[1].gpu for gpu in dict(STUDIES)]
    page = make_comparison(outputs)
    assert page.stem == COMPARISON
    assert all(f"{gpu} on " in page.read_text(encoding="utf-8") for gpu in gpus)
