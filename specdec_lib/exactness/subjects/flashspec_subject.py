"""flashspec: speculative decoding of transformers' models, one text at a time on its fast path, several on the other.

Its `top_p` is of typical acceptance alone: with the lossless rule it is taken and has no effect.
"""

import random
from typing import Any

MANUAL = "'rejection (Algorithm 1) and greedy are lossless'; 'typical is lossy' (its SamplingConfig)"
FIXED = "one drafter, fixed gamma"
WITHOUT_TOP_P = ((1.0, 0, 1.0), (0.7, 0, 1.0))  # it has no top-k
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "flashspec",
        "requirement": "flashspec==0.3.1",
        "megabytes": 1,
        "sees_ours": True,
        "ways": [
            {"method": "none", "rule": "none", "setting": "transformers' generate", "gammas": (0,)},
            {
                "method": "draft model",
                "setting": FIXED,
                "manual": MANUAL,
                "samplings": WITHOUT_TOP_P,
                "options": {"drafter_strategy": "bandit"},
            },
            {
                "method": "draft model",
                "setting": f"{FIXED}, top-p given",
                "manual": "top_p is the 'nucleus sampling threshold' (its SamplingConfig)",
                "gammas": (2,),
                "samplings": ((1.0, 0, 0.8),),
                "greedy": False,
                "options": {"drafter_strategy": "bandit"},
            },
            {
                "method": "draft model",
                "setting": f"{FIXED}, batches of 16",
                "manual": MANUAL,
                "gammas": (2, 4),
                "samplings": WITHOUT_TOP_P,
                "options": {"drafter_strategy": "bandit", "batch": 16},
            },
            {
                "method": "prompt lookup, else draft model",
                "setting": "default: it chooses gamma itself",
                "manual": MANUAL,
                "gammas": (4,),
                "samplings": WITHOUT_TOP_P,
                "options": {"drafter_strategy": "auto"},
            },
        ],
    },
]


class Serving:
    """Target, draft and what an engine of them is told."""

    def __init__(self, target: Any, draft: Any, dtype: str, options: dict[str, Any], gamma: int):
        self.target, self.draft, self.dtype, self.options, self.gamma = target, draft, dtype, options, gamma

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`. RuntimeError for top-k, which it does not have."""
        import torch

        torch.manual_seed(random.Random(seed).randrange(2**63))
        if not self.gamma:
            return self._generate(prompts, n, length, {"temperature": temperature, "top_k": top_k, "top_p": top_p})
        if top_k:
            raise RuntimeError("it has no top-k")
        decode = self._engine(temperature, top_p)
        batch = self.options.get("batch", 1)
        made = []
        for prompt in prompts:
            rows = [row for _ in range(-(-n // batch)) for row in decode([prompt] * batch, length)]
            made.append(rows[:n])
        return made

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        if not self.gamma:
            return [row for prompt in prompts for row in self._generate([prompt], 1, length, None)[0]]
        decode = self._engine(0.0, 1.0)
        return [decode([prompt], length)[0] for prompt in prompts]

    def _engine(self, temperature: float, top_p: float) -> Any:
        import torch
        from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
        from flashspec.engine.hf_drafter import HuggingFaceDrafter
        from flashspec.engine.verifier import TargetModel

        strategy = self.options["drafter_strategy"]
        config = FlashSpecConfig(
            device="cpu",
            dtype=self.dtype,
            drafter_strategy=strategy,
            sampling=SamplingConfig(gamma=self.gamma, temperature=temperature, top_p=top_p),
            **({"bandit": BanditConfig(n_arms=1)} if strategy == "bandit" else {}),
        )
        dtype = getattr(torch, self.dtype)
        drafter = HuggingFaceDrafter("draft", "cpu", dtype, temperature, model=self.draft)
        engine = SpeculativeEngine(config, [drafter], TargetModel("target", torch.device("cpu"), dtype, self.target))

        def decode(prompts: list, length: int) -> list:
            with torch.inference_mode():
                return list(engine.generate(torch.tensor(prompts), max_new_tokens=length).output_ids.tolist())

        return decode

    def _generate(self, prompts: list, n: int, length: int, sampling: dict[str, Any] | None) -> list:
        import torch
        from transformers import GenerationConfig

        chosen = {"do_sample": True} | sampling if sampling else {"do_sample": False}
        config = GenerationConfig(max_new_tokens=length, eos_token_id=None, pad_token_id=0, **chosen)
        made = []
        for prompt in prompts:
            ids = torch.tensor([prompt] * n)
            rows = self.target.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            made.append(rows[:, len(prompt) :].tolist())
        return made


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    import flashspec
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    target, draft = (
        AutoModelForCausalLM.from_pretrained(models[name], dtype=getattr(torch, dtype), trust_remote_code=False).eval()
        for name in ("target", "draft")
    )
    return Serving(target, draft, dtype, way["options"], num_draft_tokens), flashspec.__version__
