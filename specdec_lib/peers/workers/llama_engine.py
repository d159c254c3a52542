"""llama.cpp by way of its own server, inside this process: greedy decoding only, timed as its tokens arrive.

The ready build that `xllamacpp` brings is compiled for AVX2. That reads the weights as fast as memory gives them, so a
pass over one token is as fast as can be; over several it takes longer than kernels for AVX-512 would.
"""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

Decode = Callable[..., tuple[list[int], list[tuple[float, int]]]]
NGRAM_TOKENS = 3  # the text that the lookup compares; llama.cpp's own choice, 12, finds nothing in short outputs


def load(
    target: str, draft: str | None, method: str, num_draft_tokens: int | None, dtype: str, threads: int, context: int
) -> tuple[Decode, str]:
    """A decoding function and the version of `xllamacpp`, whose last number is llama.cpp's build.

    Keeps keys and values in float16, llama.cpp's own choice. To go on behind a stop token it never emits one, where
    other engines emit it: their texts part there.

    Args:
        target, draft: GGUF files, with matrices in `dtype`.
        method: autoregressive, ngram, or draft.
        context: the most tokens of prompt and output together; a prompt is computed in one pass.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_gpu_layers, params.fit_params = target, 0, False
    params.n_ctx = params.n_batch = params.n_ubatch = context
    params.n_parallel = 1
    params.cache_ram_mib = params.n_ctx_checkpoints = 0  # a prompt that comes again is computed again
    speculative, kinds = params.speculative, xllamacpp.common_speculative_type
    for cpu in (params, speculative.draft):
        cpu.cpuparams.n_threads = cpu.cpuparams_batch.n_threads = threads
    if method == "ngram":
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        speculative.ngram_simple.size_n, speculative.ngram_simple.size_m = NGRAM_TOKENS, num_draft_tokens
    elif method == "draft":
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path, speculative.draft.n_gpu_layers = str(draft), 0
        speculative.draft.n_max, speculative.draft.p_min = num_draft_tokens, 0.0  # always as many as asked for
    return _decoder(xllamacpp.Server(params)), xllamacpp.__version__


def _decoder(server: Any) -> Decode:
    address = server.listening_address.removeprefix("http://")

    def decode(
        prompt: list[int], new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
    ) -> tuple[list[int], list[tuple[float, int]]]:
        assert server  # lives as long as this function
        if temperature:
            raise ValueError("llama.cpp is compared in greedy decoding only")
        asked = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0.0, "samplers": ["temperature"]}
        asked |= {"ignore_eos": True, "stream": True, "return_tokens": True, "cache_prompt": False}
        tokens: list[int] = []
        arrivals: list[tuple[float, int]] = []
        connection = http.client.HTTPConnection(address)
        started = time.perf_counter()
        connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise RuntimeError(f"its server answered {response.status}: {response.read().decode()}")
        for line in response:  # events, one line each, with empty lines between
            new = json.loads(line[len(b"data: ") :]).get("tokens") if line.startswith(b"data: {") else None
            if new:
                tokens += new
                arrivals.append((time.perf_counter() - started, len(new)))
        connection.close()
        return tokens, arrivals

    return decode
