"""Known-bad twins: our own decoding with one realistic bug each. A table that does not catch them all proves nothing.

They are the mutants of `exactness.mutants` whose law is wrong by more than a thousandth, on the same tiny models.
"""

from typing import Any

TWINS = (
    "no residual: resamples from the target",
    "residual not normalised",
    "bonus token from the draft",
    "tokens kept after the first rejection",
    "uniform and residual draw share a stream",
    "off-by-one target row",
    "one row's acceptance for the whole batch",
    "block verification with the residual of a token",
    "block verification with an uncut joint ratio",
    "draft probabilities taken before top-k and top-p",
    "temperature on one side only",
    "draft cut where a drawn token is unlikely",
    "shared tokens only, verified against the whole draft",
    "draft draw and residual draw share a stream",
    "stale cache entry after a rollback",
)
EASY = {"gammas": (2,), "samplings": ((0.7, 3, 1.0),)}
ALL_TOKENS = {"gammas": (2,), "samplings": ((0.7, 0, 1.0),)}
HARD = {"gammas": (4,), "samplings": ((0.7, 2, 1.0),)}  # a wrong block rule shows after several draft tokens only


def _setting(twin: str) -> dict[str, Any]:
    """Where the bug shows."""
    return HARD if "block" in twin else ALL_TOKENS if "shared" in twin else EASY


SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "known-bad twins",
        "reloads": True,
        "kind": "twin",
        "dtypes": ("float32",),
        "ways": [{"method": twin, "rule": "wrong", "greedy": False} | _setting(twin) for twin in TWINS],
    }
]


class Serving:
    """A system with a bug."""

    def __init__(self, system: Any, num_draft_tokens: int):
        self.system, self.num_draft_tokens = system, num_draft_tokens

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`."""
        import torch

        from specdec_lib.config import SamplingConfig
        from specdec_lib.exactness.subjects.in_process import engine_sampler

        sampler = engine_sampler(
            self.system.target,
            self.system.proposer,
            length=length,
            batch_size=min(len(prompts) * n, 2048),
            sampling=SamplingConfig(temperature, top_k, top_p),
            num_draft_tokens=self.num_draft_tokens,
            verification=self.system.verification,
        )
        return [rows.tolist() for rows in sampler([torch.tensor(prompt) for prompt in prompts], n, seed)]


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    import torch

    from specdec_lib import load_pair
    from specdec_lib.exactness.mutants import systems

    torch.set_num_threads(threads)
    pair = load_pair(target=models["target"], draft=models["draft"], dtype=dtype, compiled=False)
    return Serving(systems(pair)[way["method"]], num_draft_tokens), "twin"
