"""This study's own decoding: plain PyTorch, steps recorded and replayed as CUDA graphs are, and the C++ kernels.

It runs in our own environment, through the public calls that a user makes, in ragged batches.
"""

from typing import Any

BATCH = 256  # rows of a batch
RULE_OF_PAPER = "'without changing one bit of the target's output distribution' (README)"
DRAFTING = ("draft", "ngram", "composite", "suffix", "suffix_or_draft", "early_exit")


def _ways(methods: tuple[str, ...], gammas: tuple[int, ...], **more: Any) -> list[dict[str, Any]]:
    """The baseline, and these methods by the token rule; the draft model by the block rule too."""
    every: dict[str, Any] = {"manual": RULE_OF_PAPER, "gammas": gammas, **more}
    baseline = {"method": "none", "rule": "none", "gammas": (0,)} | more
    ways = [{"method": method} | every | ({} if method == "draft" else {"gammas": gammas[:1]}) for method in methods]
    return [baseline, *ways, {"method": "draft", "rule": "block"} | every]


SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "specdec_lib",
        "reloads": True,
        "ways": [
            *_ways(DRAFTING, (2, 1, 4)),
            *(
                {"method": "draft", "setting": f"length {length}", "gammas": (2,), "options": {"draft_length": length}}
                for length in ("confidence:0.4", "acceptance:0.3")
            ),
            {"method": "draft with another vocabulary", "gammas": (2,), "options": {"draft": "other draft"}},
        ],
    },
    {
        "name": "specdec_lib, recorded steps",
        "reloads": True,
        "dtypes": ("float32",),
        "ways": _ways(("draft", "ngram", "composite"), (2,)),
    },
    {
        "name": "specdec_lib, C++ kernels",
        "reloads": True,
        "dtypes": ("bfloat16",),
        "ways": _ways(DRAFTING[:3], (2, 4), own_model=True),
    },
]


class Serving:
    """A pair, and how it is decoded."""

    def __init__(self, pair: Any, way: dict[str, Any], num_draft_tokens: int):
        self.pair, self.num_draft_tokens = pair, num_draft_tokens
        from specdec_lib.methods import make_proposer

        method = way["method"].removesuffix(" with another vocabulary")
        self.proposer = make_proposer(method, pair) if num_draft_tokens else None
        self.options = {key: value for key, value in way["options"].items() if key != "draft"}
        if num_draft_tokens:
            self.options |= {"verification": way["rule"], "num_draft_tokens": num_draft_tokens}

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`."""
        import torch

        from specdec_lib.config import SamplingConfig

        generator, copies = torch.Generator().manual_seed(seed), max(BATCH // len(prompts), 1)
        rows: list[list[list[int]]] = [[] for _ in prompts]
        while len(rows[0]) < n:
            now = min(copies, n - len(rows[0]))
            made = self._decode(prompts * now, length, SamplingConfig(temperature, top_k, top_p), generator)
            for place, row in enumerate(made):
                rows[place % len(prompts)].append(row)
        return rows

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        from specdec_lib.config import SamplingConfig

        return self._decode(prompts, length, SamplingConfig(temperature=0), None)

    def logits(self, texts: list) -> list:
        """Of the engine's own passes, each from an empty cache."""
        import torch

        target, found = self.pair.target, []
        with torch.inference_mode():
            for part in torch.tensor(texts).split(96):
                step = target.forward(part, target.new_cache(*part.shape))
                found += target.logits(step.hidden[:, -1]).float().tolist()
        return found

    def _decode(self, prompts: list, length: int, sampling: Any, generator: Any) -> list:
        from specdec_lib import autoregressive_decode, speculative_decode

        given = {"max_new_tokens": length, "sampling": sampling, "generator": generator}
        if self.proposer is None:
            result = autoregressive_decode(self.pair.target, prompts, **given)
        else:
            result = speculative_decode(self.pair.target, self.proposer, prompts, **given, **self.options)
        return [row.tolist() for row in result.tokens]


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`. The kernels are refused where they do not serve."""
    import torch

    from specdec_lib import load_pair
    from specdec_lib.config import BENCHMARK_VERSION

    torch.set_num_threads(threads)
    kernels = "kernels" in subject
    draft = models[way["options"].get("draft", "draft")]
    pair = load_pair(target=models["target"], draft=draft, dtype=dtype, compiled=kernels)
    if kernels and pair.target.engine != "kernels":
        raise RuntimeError(f"the kernels do not serve here: the target runs {pair.target.engine}")
    if "recorded" in subject:
        _record()
    return Serving(pair, way, num_draft_tokens), f"benchmark {BENCHMARK_VERSION}"


def _record() -> None:
    """Every step is recorded operator by operator and replayed, as CUDA graphs do it on a GPU."""
    from specdec_lib.decoding import captured_loop
    from specdec_lib.machine.recorded_steps import Recorder

    recorder: Any = Recorder()
    steps: Any = captured_loop
    steps.CudaGraphs = lambda device: recorder
    steps.why_not_captured = lambda target: getattr(target.kept, "failure", None)
