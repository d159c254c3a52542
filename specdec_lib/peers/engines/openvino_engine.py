"""OpenVINO GenAI on the CPU: its own scheduler, kernels and sampler, with a callback for every emitted token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Emit = Callable[[list[int]], None]
Decode = Callable[..., None]
ENGINE = {
    "name": "openvino",
    "requirement": "openvino-genai==2026.4.1.0",
    "megabytes": 300,
    "methods": ("autoregressive", "ngram", "draft"),
    "greedy_only": ("draft",),  # sampling, it accepted more draft tokens than an exact rule can
    "weights": "gguf-float16",
}
PRECISIONS = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
NGRAM_TOKENS = 3  # the most tokens that prompt lookup compares


def load(
    target: str, draft: str | None, method: str, num_draft_tokens: int | None, dtype: str, threads: int, context: int
) -> tuple[Decode, str]:
    """A decoding function and the version of OpenVINO GenAI.

    Weights, keys and values are in `dtype`; by default OpenVINO keeps keys and values in 8 bits.
    """
    import openvino_genai as genai

    precision = PRECISIONS[dtype]
    device: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    device |= {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # a prompt that comes again is computed again
    scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 1, context
    speculation: dict[str, Any] = {}
    if method == "ngram":
        speculation = {"prompt_lookup": True}
    elif method == "draft":
        speculation = {"draft_model": genai.draft_model(_own_format(str(draft)), "CPU", **device)}
    pipeline = genai.LLMPipeline(_own_format(target), "CPU", scheduler_config=scheduler, **device, **speculation)
    return _decoder(genai, pipeline, method, num_draft_tokens), genai.__version__


def _own_format(gguf: str) -> str:
    """The folder of a GGUF file, into which OpenVINO writes the same weights in its own format, once per version."""
    import openvino_genai as genai

    folder = Path(gguf).parent
    converted = folder / f"converted-{genai.__version__}"
    if not converted.exists():
        genai.LLMPipeline(gguf, "CPU", enable_save_ov_model=True)
        converted.touch()
    return str(folder)


def _decoder(genai: Any, pipeline: Any, method: str, num_draft_tokens: int | None) -> Decode:
    import numpy as np
    from openvino import Tensor

    def decode(
        emit: Emit, prompt: list[int], new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
    ) -> None:
        chosen = genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True, do_sample=temperature > 0)
        if temperature:
            chosen.temperature, chosen.top_p, chosen.rng_seed = temperature, top_p, seed
            if top_k:
                chosen.top_k = top_k
        if method != "autoregressive":
            chosen.num_assistant_tokens = num_draft_tokens
        if method == "ngram":
            chosen.max_ngram_size = NGRAM_TOKENS

        class Streamer(genai.StreamerBase):  # type: ignore[misc]
            def write(self, tokens: int | list[int]) -> Any:
                emit(tokens if isinstance(tokens, list) else [tokens])
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        pipeline.generate(Tensor(np.array([prompt], dtype=np.int64)), chosen, Streamer())

    return decode
