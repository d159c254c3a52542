"""OpenVINO GenAI on the CPU: its continuous batching, with a draft model or prompt lookup.

What it does with a draft model, sampling, in place of the rule of Leviathan et al. (`sampler.cpp`, `validate_candidate`
and `sample_from_sequence_group`): it samples a token of the target, compares the chance that the draft gave to its own
token with the chance of that other token, and keeps the draft's token if a random hundredth is at most the ratio. After
a rejection it samples no residual: it takes a token of the next position, which was read after the rejected one.
"""

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

PRECISIONS = {"bfloat16": "bf16", "float32": "f32"}
BATCH, CONTEXT = 64, 64  # requests decoded at once, and tokens of each at most
KV_BLOCKS = 1024  # of 32 tokens
LOOKUP_TOKENS = 3  # the most tokens that prompt lookup compares
MANUAL = (
    "'the main model validates these predictions and corrects them if necessary' (speculative decoding sample); of"
    " sampling it says nothing"
)
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "openvino",
        "requirement": "openvino-genai==2026.4.1.0",
        "environment": "openvino",
        "megabytes": 300,
        "reads": "gguf-float16",
        "ways": [
            {"method": "none", "rule": "none", "gammas": (0,)},
            {"method": "draft model", "manual": MANUAL, "report": "openvinotoolkit/openvino.genai#4190"},
            {"method": "prompt lookup", "rule": "exact match", "manual": MANUAL},
        ],
    },
]


class Serving:
    """A pipeline, and what each of its requests says of drafts."""

    def __init__(self, pipeline: Any, drafts: dict[str, int]):
        self.pipeline, self.drafts = pipeline, drafts

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`."""
        seeds = random.Random(seed)
        given = {"do_sample": True, "temperature": temperature, "top_p": top_p} | ({"top_k": top_k} if top_k else {})
        asked = [given | {"rng_seed": seeds.randrange(2**32)} for _ in range(n * len(prompts))]
        made = self._generate([prompt for prompt in prompts for _ in range(n)], length, asked)
        return [made[first : first + n] for first in range(0, len(made), n)]

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        return self._generate(prompts, length, [{"do_sample": False}] * len(prompts))

    def _generate(self, prompts: list, length: int, asked: list) -> list:
        import numpy as np
        import openvino_genai as genai
        from openvino import Tensor

        configs = [
            genai.GenerationConfig(max_new_tokens=length, ignore_eos=True, **self.drafts, **each) for each in asked
        ]
        texts = [Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        made: list = []
        for first in range(0, len(texts), BATCH):
            made += self.pipeline.generate(texts[first : first + BATCH], configs[first : first + BATCH])
        return [list(each.m_generation_ids[0]) for each in made]


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`. Keys and values are in `dtype` too; by default OpenVINO keeps them in 8 bits."""
    import openvino_genai as genai

    device: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": PRECISIONS[dtype]}
    device["KV_CACHE_PRECISION"] = PRECISIONS[dtype]
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = KV_BLOCKS
    scheduler.max_num_seqs, scheduler.max_num_batched_tokens = BATCH, BATCH * CONTEXT
    drafts: dict[str, int] = {"num_assistant_tokens": num_draft_tokens} if num_draft_tokens else {}
    speculation: dict[str, Any] = {}
    if way["method"] == "draft model":
        speculation["draft_model"] = genai.draft_model(_own_format(models["draft"]), "CPU", **device)
    elif way["method"] == "prompt lookup":
        speculation["prompt_lookup"] = True
        drafts["max_ngram_size"] = LOOKUP_TOKENS
    pipeline = genai.ContinuousBatchingPipeline(
        _own_format(models["target"]), scheduler, "CPU", device | speculation, {}, {}
    )
    return Serving(pipeline, drafts), genai.__version__


def _own_format(gguf: str) -> str:
    """A folder into which OpenVINO wrote the weights of a GGUF file in its own format."""
    import openvino_genai as genai

    folder = Path(tempfile.mkdtemp())
    shutil.copy(gguf, folder / "model.gguf")
    genai.LLMPipeline(str(folder / "model.gguf"), "CPU", enable_save_ov_model=True)
    return str(folder)


def script(
    way: dict[str, Any],
    models: dict[str, str],
    num_draft_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    n: int,
) -> str:
    """See `exactness.subjects`. It counts second tokens: the first is not drafted."""
    return f"""
import shutil, tempfile
from collections import Counter
import numpy as np
import openvino_genai as genai
from openvino import Tensor

def converted(gguf):
    folder = tempfile.mkdtemp()
    shutil.copy(gguf, folder + "/model.gguf")
    genai.LLMPipeline(folder + "/model.gguf", "CPU", enable_save_ov_model=True)
    return folder

float32 = dict(INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32")
draft = genai.draft_model(converted({models.get("draft", "")!r}), "CPU", **float32)
for given in ({{}}, {{"draft_model": draft}}):
    pipeline = genai.LLMPipeline(
        converted({models["target"]!r}), "CPU", scheduler_config=genai.SchedulerConfig(), **float32, **given
    )
    seen = Counter()
    for seed in range({n}):
        config = genai.GenerationConfig(
            max_new_tokens=4, ignore_eos=True, do_sample=True, temperature={temperature}, top_p={top_p}, rng_seed=seed
        )
        if {top_k}:
            config.top_k = {top_k}
        if given:
            config.num_assistant_tokens = {num_draft_tokens}
        seen[pipeline.generate(Tensor(np.array([[0, 1, 2, 0, 1]])), config).tokens[0][1]] += 1
    print("with draft" if given else "alone", {{token: seen[token] / {n} for token in range(5)}})
""".lstrip()
