"""The package `speculative-decoding` (lucidrains): the algorithm on its own small transformer, with random weights.

Its function takes batches, in which rows of unequal length are padded on the left. The mask of that padding is computed
but not given to the layers, so that a row reads it.
"""

import random
from typing import Any

MANUAL = "'eq. algorithm 1 in paper https://arxiv.org/abs/2211.17192' (its docstring)"
TOKENS = 8
SPREAD = 6.0  # of the logits, so that they are as peaked as language
WITHOUT_TOP_P = ((1.0, 0, 1.0), (0.7, 3, 1.0))  # it has no top-p
OWN: dict[str, Any] = {"own_model": True, "greedy": False, "samplings": WITHOUT_TOP_P, "manual": MANUAL}
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "speculative-decoding",
        "requirement": "speculative-decoding==0.2.0 beartype==0.22.9 einops==0.8.2",
        "megabytes": 5,
        "sees_ours": True,
        "dtypes": ("float32",),
        "ways": [
            OWN | {"method": "none", "rule": "none", "gammas": (0,)},
            OWN | {"method": "draft model", "setting": "one text at a time", "options": {"batch": 1}},
            OWN | {"method": "draft model", "setting": "batches of 8", "options": {"batch": 8}},
            {"method": "early exit", "untestable": "its model with an exit raises NameError when it is made"},
        ],
    },
]


class Serving:
    """Target and draft of the package's own class."""

    def __init__(self, target: Any, draft: Any, gamma: int, batch: int):
        self.target, self.draft, self.gamma, self.batch = target, draft, gamma, batch

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`. RuntimeError for top-p, which it does not have."""
        import torch

        if top_p < 1:
            raise RuntimeError("it has no top-p")
        torch.manual_seed(random.Random(seed).randrange(2**63))
        kept = 1 - (top_k or TOKENS) / TOKENS
        return [self._rows(prompt, n, length, temperature, kept) for prompt in prompts]

    def _rows(self, prompt: list, n: int, length: int, temperature: float, kept: float) -> list:
        import torch
        from speculative_decoding.speculative_decoding import base_decoding, speculative_decoding

        batch = self.batch if self.gamma else n
        ids = torch.tensor([prompt] * batch)
        made: list = []
        given = {"temperature": temperature, "filter_thres": kept}
        while len(made) < n:
            if self.gamma:
                rows, _ = speculative_decoding(
                    self.target, self.draft, ids, len(prompt) + length, gamma=self.gamma, **given
                )
            else:
                rows = base_decoding(self.target, ids, len(prompt) + length, **given)
            made += rows.tolist()
        return made[:n]

    def logits(self, texts: list) -> list:
        """See `exactness.subjects`."""
        import torch

        with torch.no_grad():
            return [self.target(torch.tensor([text]))[0, -1].tolist() for text in texts]


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    from importlib.metadata import version

    import torch
    from speculative_decoding.speculative_decoding import Decoder

    torch.set_num_threads(threads)
    nets: list[Any] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = Decoder(num_tokens=TOKENS, dim=64, depth=2, heads=2, dim_head=32).eval()
        net.to_logits[1].weight.data *= SPREAD / 64**0.5 / net.to_logits[1].weight.data.std()
        nets.append(net)
    return Serving(nets[0], nets[1], num_draft_tokens, way.get("options", {}).get("batch", 1)), version(
        "speculative-decoding"
    )
