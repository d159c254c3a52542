"""transformers: `generate` with each kind of assistance, one text at a time, as it demands."""

import random
from typing import Any

MANUAL = (
    "assisted decoding 'supports greedy search and sampling'; a sampled text is the target's (docs: assisted decoding)"
)
CONSTANT = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
LOSSLESS = "constant length, no confidence threshold"
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "transformers",
        "ways": [
            {"method": "none", "rule": "none", "gammas": (0,)},
            {"method": "assistant", "manual": MANUAL},
            {"method": "assistant", "setting": LOSSLESS, "options": CONSTANT, "manual": MANUAL},
            {"method": "prompt lookup", "rule": "exact match"},
            {"method": "early exit", "setting": LOSSLESS, "options": CONSTANT},
            {"method": "assistant with another vocabulary", "setting": LOSSLESS, "options": CONSTANT},
        ],
    },
]


class Serving:
    """A target, and what `generate` is given to assist it."""

    def __init__(self, target: Any, assistance: dict[str, Any]):
        self.target, self.assistance = target, assistance

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`."""
        seeds = random.Random(seed)
        options = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        if not self.assistance:
            return [self._generate([prompt] * n, length, seeds.randrange(2**63), options) for prompt in prompts]
        return [
            [self._generate([prompt], length, seeds.randrange(2**63), options)[0] for _ in range(n)]
            for prompt in prompts
        ]

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        return [self._generate([prompt], length, 0, {"do_sample": False})[0] for prompt in prompts]

    def _generate(self, prompts: list, length: int, seed: int, options: dict[str, Any]) -> list:
        import torch
        from transformers import GenerationConfig

        torch.manual_seed(seed)
        ids = torch.tensor(prompts)
        config = GenerationConfig(max_new_tokens=length, eos_token_id=None, pad_token_id=0, **options)
        with torch.inference_mode():
            made = self.target.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config, **self.assistance
            )
        return made[:, ids.shape[1] :].tolist()


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)

    def model(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(models[name], dtype=getattr(torch, dtype)).eval()

    def drafting(assistant: Any) -> Any:
        assistant.generation_config.update(num_assistant_tokens=num_draft_tokens, **way["options"])
        return assistant

    target, method, assistance = model("target"), way["method"], {}
    if method == "assistant":
        assistance = {"assistant_model": drafting(model("draft"))}
    elif method == "assistant with another vocabulary":
        names = {"tokenizer": "target", "assistant_tokenizer": "other draft"}
        assistance = {key: AutoTokenizer.from_pretrained(models[name]) for key, name in names.items()}
        assistance["assistant_model"] = drafting(model("other draft"))
    elif method == "prompt lookup":
        assistance = {"prompt_lookup_num_tokens": num_draft_tokens}
    elif method == "early exit":
        assistance = {"assistant_early_exit": 1}
        drafting(target)
    return Serving(target, assistance), transformers.__version__


def script(
    way: dict[str, Any],
    models: dict[str, str],
    num_draft_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    n: int,
) -> str:
    """See `exactness.subjects`."""
    lines = [
        "from collections import Counter",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"target = AutoModelForCausalLM.from_pretrained({models['target']!r})",
    ]
    return "\n".join(lines)
