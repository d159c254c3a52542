"""LitGPT: `litgpt.generate.speculative_decoding`, one text at a time, on its own model class with the tiny weights.

As shipped the function returns the text without its first token. So the same ways are tested once more with that token
put back, which tells its rule. At temperature 0 that rule accepts by the ratio of probabilities at temperature 1. With
top-p it puts the residual through the filter for logits, which raises an error at the first rejection.
"""

import json
import random
from pathlib import Path
from typing import Any

DROPPED = "Lightning-AI/litgpt#2307"
MENDED = "with #2307 mended"
MANUAL = "'implements the speculative decoding algorithm' of Leviathan et al. (its docstring)"
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "litgpt",
        "requirement": "litgpt==0.5.13 lightning==2.6.1 jsonargparse==4.41.0 lightning-utilities==0.15.3"
        " torchmetrics==1.9.0 pytorch-lightning==2.6.6",
        "megabytes": 20,
        "sees_ours": True,
        "ways": [
            {"method": "none", "rule": "none", "gammas": (0,)},
            {"method": "draft model", "manual": MANUAL, "gammas": (2,), "report": DROPPED},
            {"method": "draft model", "setting": MENDED, "manual": MANUAL},
        ],
    },
]


class Serving:
    """Target and draft, and whether the first token is put back."""

    def __init__(self, target: Any, draft: Any, gamma: int, mended: bool):
        self.target, self.draft, self.gamma, self.mended = target, draft, gamma, mended

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`."""
        import torch

        torch.manual_seed(random.Random(seed).randrange(2**63))
        given = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p}
        return [[self._generate(prompt, length, given) for _ in range(n)] for prompt in prompts]

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        return [self._generate(prompt, length, {"temperature": 0.0}) for prompt in prompts]

    def _generate(self, prompt: list, length: int, given: dict[str, Any]) -> list:
        import torch
        from litgpt.generate import base, speculative_decoding

        ids, last = torch.tensor(prompt), len(prompt) + length
        if not self.gamma:
            return list(base.generate(self.target, ids, last, **given)[len(prompt) :].tolist())
        first: list[int] = []
        next_token = base.next_token

        def noted(model: Any, *args: Any, **kwargs: Any) -> Any:
            token = next_token(model, *args, **kwargs)
            if self.mended and model is self.target:
                first.append(int(token))
            return token

        speculative_decoding.next_token = noted
        made, _ = speculative_decoding.generate(
            self.draft, self.target, ids, last + 1, include_prompt=False, speculative_k=self.gamma, **given
        )
        return [*first, *made.flatten().tolist()][:length]


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    from importlib.metadata import version

    import torch

    torch.set_num_threads(threads)
    target, draft = (_model(Path(models[name]), getattr(torch, dtype)) for name in ("target", "draft"))
    return Serving(target, draft, num_draft_tokens, way["setting"] == MENDED), version("litgpt")


def _model(folder: Path, dtype: Any) -> Any:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = Config(
        block_size=given["max_position_embeddings"],
        n_layer=given["num_hidden_layers"],
        n_embd=given["hidden_size"],
        vocab_size=given["vocab_size"],
        padded_vocab_size=given["vocab_size"],
        n_head=given["num_attention_heads"],
        head_size=given["head_dim"],
        n_query_groups=given["num_key_value_heads"],
        intermediate_size=given["intermediate_size"],
        rope_base=int(given["rope_parameters"]["rope_theta"]),
        norm_eps=given["rms_norm_eps"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(folder / "model.safetensors"), dtype=dtype)
    model = GPT(config).to(dtype)
    model.load_state_dict(weights)
    model.set_kv_cache(batch_size=1, dtype=dtype)
    return model.eval()
