"""mini-infer: its function `speculative_step`, called again and again. Our Llama gives the logits of both models."""

import random
from collections.abc import Callable
from typing import Any

MANUAL = "'Rejection sampling accepts/rejects candidates with zero distribution drift' (its docstring)"
WITHOUT_FILTERS = ((1.0, 0, 1.0), (0.7, 0, 1.0))  # it has no top-k and no top-p
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "mini-infer",
        "requirement": "mini-infer==0.2.5",
        "megabytes": 1,
        "sees_ours": True,
        "ways": [
            {"method": "none", "rule": "none", "setting": "its sampler", "gammas": (0,)},
            {
                "method": "draft model",
                "setting": "its function alone",
                "manual": MANUAL,
                "samplings": WITHOUT_FILTERS,
            },
        ],
    },
]
Model = Callable[[Any], tuple[Any, None]]  # token ids [1, n] to logits [1, n, V] and no cache


class Serving:
    """The two models as the function calls them."""

    def __init__(self, target: Model, draft: Model, gamma: int):
        self.target, self.draft, self.gamma = target, draft, gamma

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`. RuntimeError for filters, which its function does not have."""
        import torch

        if self.gamma and (top_k or top_p < 1):
            raise RuntimeError("its function has no top-k and no top-p")
        torch.manual_seed(random.Random(seed).randrange(2**63))
        filters = {"top_k": top_k or -1, "top_p": top_p}
        return [[self._decode(prompt, length, temperature, filters) for _ in range(n)] for prompt in prompts]

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        return [self._decode(prompt, length, 0.0, {}) for prompt in prompts]

    def _decode(self, prompt: list, length: int, temperature: float, filters: dict[str, Any]) -> list:
        import torch
        from mini_infer.models.sampler import sample_next_token
        from mini_infer.speculative.verifier import speculative_step

        text = list(prompt)
        with torch.inference_mode():
            while len(text) < len(prompt) + length:
                ids = torch.tensor([text])
                if self.gamma:
                    text += speculative_step(self.target, self.draft, ids, self.gamma, temperature)[0]
                else:
                    text.append(int(sample_next_token(self.target(ids)[0][:, -1], temperature, **filters)))
        return text[len(prompt) : len(prompt) + length]


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    from importlib.metadata import version

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)

    def model(name: str) -> Model:
        loaded = AutoModelForCausalLM.from_pretrained(
            models[name], dtype=getattr(torch, dtype), trust_remote_code=False
        ).eval()
        return lambda ids: (loaded(ids, use_cache=False).logits, None)

    return Serving(model("target"), model("draft"), num_draft_tokens), version("mini-infer")
