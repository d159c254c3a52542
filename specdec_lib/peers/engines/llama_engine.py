"""llama.cpp through its own server, which runs in this process.

The build in `xllamacpp` is compiled for AVX2. It reads the weights as fast as memory allows, so a pass over one token
is as fast as can be. A pass over several tokens takes longer than kernels for AVX-512 would.
"""

import http.client
import json
from collections.abc import Callable
from typing import Any

Emit = Callable[[list[int]], None]
Decode = Callable[..., None]
ENGINE = {
    "name": "llama.cpp",
    "requirement": "xllamacpp==2026.10.11549",
    "megabytes": 130,
    "methods": ("autoregressive", "ngram", "draft"),
    "greedy_only": ("autoregressive", "ngram", "draft"),  # whether its sampling is exact was not tested
    "weights": "gguf",
}
NGRAM_TOKENS = 3  # tokens that the lookup compares; with llama.cpp's default, 12, it finds nothing in short outputs


def load(
    target: str, draft: str | None, method: str, num_draft_tokens: int | None, dtype: str, threads: int, context: int
) -> tuple[Decode, str]:
    """A decoding function and the version of `xllamacpp`, whose last number is llama.cpp's build.

    Keys and values are in float16, llama.cpp's default. To ignore stop tokens llama.cpp never emits one; other engines
    emit it and go on, so their texts differ from there.
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
        speculative.draft.n_max, speculative.draft.p_min = num_draft_tokens, 0.0  # always num_draft_tokens
    return _decoder(xllamacpp.Server(params)), xllamacpp.__version__


def _decoder(server: Any) -> Decode:
    address = server.listening_address.removeprefix("http://")

    def decode(
        emit: Emit, prompt: list[int], new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
    ) -> None:
        assert server  # lives as long as this function
        if temperature:
            raise ValueError("llama.cpp is compared in greedy decoding only")
        asked = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0.0, "samplers": ["temperature"]}
        asked |= {"ignore_eos": True, "stream": True, "return_tokens": True, "cache_prompt": False}
        connection = http.client.HTTPConnection(address)
        connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise RuntimeError(f"its server answered {response.status}: {response.read().decode()}")
        for line in response:  # events, one line each, with empty lines between
            new = json.loads(line[len(b"data: ") :]).get("tokens") if line.startswith(b"data: {") else None
            if new:
                emit(new)
        connection.close()

    return decode
