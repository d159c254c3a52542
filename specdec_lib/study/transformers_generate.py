"""`transformers.generate` on the very same weights, timed token by token: the reference that users would pick."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.models.attention import as_transformers_does
from specdec_lib.models.runner import LanguageModel
from specdec_lib.study.rows.columns import Arrival, result_of_arrivals


class _Clock(StoppingCriteria):
    """Called once for each step; notes the time and how many tokens there are, and stops nothing."""

    def __init__(self, prompt_tokens: int) -> None:
        self.started = time.perf_counter()
        self.known = prompt_tokens
        self.arrivals: list[Arrival] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.device.type == "cuda":
            torch.cuda.synchronize()  # generate itself waits for the device right after this call
        self.arrivals.append((time.perf_counter() - self.started, input_ids.shape[1] - self.known))
        self.known = input_ids.shape[1]
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def transformers_decode(
    target: LanguageModel,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    **assistance: Any,
) -> DecodeResult:
    """Decode with `generate`, its own cache and its default attention; `max_new_tokens` for every row, no stop tokens.

    Prompts are padded on the left, as generate wants it. Its only source of randomness is PyTorch's global generator,
    which is seeded in a fork and put back.

    Args:
        assistance: `assistant_model=` or `prompt_lookup_num_tokens=` for assisted generation, of a single prompt.
    """
    longest = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([(torch.arange(longest) >= longest - len(prompt)).long() for prompt in prompts])
    drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    chosen = {"do_sample": True, **drawn} if sampling.temperature else {"do_sample": False}
    settings = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=None, pad_token_id=0, **chosen)
    devices = [target.device] if target.device.type == "cuda" else []
    models = target.model, assistance.get("assistant_model")
    with as_transformers_does(*models), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        clock = _Clock(longest)
        output = target.model.generate(
            ids.to(target.device),
            attention_mask=mask.to(target.device),
            generation_config=settings,
            stopping_criteria=[clock],
            **assistance,
        )
    made = output.shape[1] - longest
    assert made == max_new_tokens, f"generate made {made} of {max_new_tokens} tokens"
    return result_of_arrivals(list(output[:, longest:].cpu()), clock.arrivals)
