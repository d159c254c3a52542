"""llama.cpp through `xllamacpp`: its own server, which runs in this process and is asked over HTTP on this machine.

Keys and values are in the dtype of the weights' computation, float32; by default llama.cpp keeps them in float16.
"""

import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SLOTS = 8  # requests that it decodes at once
CONTEXT = 128  # tokens of each
LOOKUP_TOKENS = 2  # that a lookup compares; with llama.cpp's defaults, 12 and more, it finds nothing in short texts
EXACT = "exact match"
MANUAL = "'the draft is verified by the target': a token stays where the target, sampling for itself, chose the same"
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "llama.cpp",
        "requirement": "xllamacpp==2026.10.11549",
        "environment": "llama.cpp",
        "megabytes": 130,
        "reads": "gguf",
        "dtypes": ("float32",),
        "ways": [
            {"method": "none", "rule": "none", "gammas": (0,)},
            {"method": "draft-simple", "rule": EXACT},
            {"method": "draft-simple", "rule": "token", "setting": "probabilistic", "options": {"probabilistic": True}},
            {"method": "ngram-simple", "rule": EXACT},
            {"method": "ngram-map-k", "rule": EXACT, "gammas": (2,)},
            {"method": "ngram-mod", "rule": EXACT, "gammas": (2,)},
            {"method": "ngram-cache", "rule": EXACT, "gammas": (2,)},
        ],
    },
]


class Serving:
    """A server and its address."""

    def __init__(self, server: Any):
        self.server = server
        self.address = server.listening_address.removeprefix("http://")

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`."""
        seeds = random.Random(seed)
        filters = ["top_k"] * (top_k > 0) + ["top_p"] * (top_p < 1)
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "samplers": ["temperature", *filters]}
        asked = [
            given | {"prompt": prompt, "n_predict": length, "seed": seeds.randrange(2**32 - 1)}
            for prompt in prompts
            for _ in range(n)
        ]
        made = self._complete_all(asked)
        return [made[first : first + n] for first in range(0, len(made), n)]

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        given = {"temperature": 0.0, "samplers": ["temperature"], "n_predict": length}
        return self._complete_all([given | {"prompt": prompt} for prompt in prompts])

    def _complete_all(self, asked: list) -> list:
        with ThreadPoolExecutor(SLOTS) as pool:
            return list(pool.map(self._complete, asked))

    def _complete(self, asked: dict[str, Any]) -> list[int]:
        body = asked | {"ignore_eos": True, "return_tokens": True, "cache_prompt": False}
        connection = http.client.HTTPConnection(self.address)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read().decode()
        connection.close()
        if response.status != http.client.OK:
            raise RuntimeError(f"its server answered {response.status}: {answer}")
        return list(json.loads(answer)["tokens"])


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_gpu_layers, params.fit_params = models["target"], 0, False
    params.n_ctx, params.n_parallel = CONTEXT * SLOTS, SLOTS
    params.n_batch = params.n_ubatch = CONTEXT * SLOTS
    params.cache_ram_mib = params.n_ctx_checkpoints = 0  # a prompt that comes again is computed again
    speculative, kinds = params.speculative, xllamacpp.common_speculative_type
    drafting = speculative.draft
    for cache in (params, drafting):
        cache.cache_type_k = cache.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        cache.cpuparams.n_threads = cache.cpuparams_batch.n_threads = threads
    method = way["method"]
    if method != "none":
        speculative.types = [getattr(kinds, "COMMON_SPECULATIVE_TYPE_" + method.upper().replace("-", "_"))]
    if method == "draft-simple":
        drafting.mparams.path, drafting.n_gpu_layers = models["draft"], 0
        drafting.n_max, drafting.p_min = num_draft_tokens, 0.0  # always num_draft_tokens
        drafting.probabilistic = way["options"].get("probabilistic", False)
    elif method in ("ngram-simple", "ngram-map-k"):
        lookup = getattr(speculative, method.replace("-", "_"))
        lookup.size_n, lookup.size_m = LOOKUP_TOKENS, num_draft_tokens
    elif method == "ngram-mod":
        mod = speculative.ngram_mod
        mod.n_match, mod.n_min, mod.n_max = LOOKUP_TOKENS, 1, num_draft_tokens
    elif method == "ngram-cache":
        drafting.n_max = num_draft_tokens
    return Serving(xllamacpp.Server(params)), xllamacpp.__version__
