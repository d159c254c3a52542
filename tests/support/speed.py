"""How near the CPU kernels come to what memory allows: `make speed`, or `python tests/support/speed.py --shapes ...`.

Random models of real shapes. In every round each piece is timed once, in a new order: reading memory, a pass
over one and over five tokens, and decoding by us and by transformers. Ratios are of the same round; a line has their
geometric mean and in brackets the least and the greatest. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from statistics import geometric_mean, median

import torch

from specdec_lib.config import INT8, SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.machine.calibration import matrix_weights
from specdec_lib.machine.stopwatch import Stopwatch
from specdec_lib.models.loading.checkpoints import config_of, random_model
from specdec_lib.models.runner import LanguageModel
from specdec_lib.study.rows.columns import latency_columns
from specdec_lib.study.transformers_generate import transformers_decode

GREEDY = SamplingConfig(temperature=0)
PASS = 5  # tokens of a verification
BUFFER = 2**30  # bytes, far more than any cache holds
AIMS = "at most 1.25", f"v({PASS}) at most 1.35", "at least 2"
HEADINGS = (
    "model",
    "GB read",
    "GB/s of memory",
    "TPOT ms",
    "TPOT / (bytes / bandwidth)",
    f"v({PASS})",
    "transformers / ours",
)


def seconds_of_a_round(
    model: LanguageModel, plain: LanguageModel, prompt: torch.Tensor, new_tokens: int, order: int
) -> dict[str, float]:
    """Each piece once, in an order of its own; transformers decodes with `plain`, the same shape in bfloat16."""
    watch, cache = Stopwatch(model.device), model.new_cache(1, len(prompt) + PASS)
    model.forward(prompt[None], cache)
    cache.commit(len(prompt), at_most=len(prompt))
    given = {"max_new_tokens": new_tokens, "sampling": GREEDY}

    def one_pass(tokens: int) -> float:
        return median(
            watch.seconds(lambda: model.logits(model.forward(prompt[None, :tokens], cache).hidden)) for _ in range(3)
        )

    def per_token(result: DecodeResult) -> float:
        return float(latency_columns(result)["tpot_ms"]) / 1e3

    pieces = {
        "read": partial(watch.seconds, torch.ones(BUFFER // 4).sum),
        "one": partial(one_pass, 1),
        "several": partial(one_pass, PASS),
        "ours": lambda: per_token(autoregressive_decode(model, [prompt], **given)),
        "transformers": lambda: per_token(transformers_decode(plain, [prompt], seed=0, **given)),
    }
    names = random.Random(order).sample(list(pieces), len(pieces))
    return {name: pieces[name]() for name in names}


def line(name: str, dtype: str, rounds: int, prompt_tokens: int, new_tokens: int) -> str:
    """The row of one shape in the table."""
    model = random_model(name, config_of(name), "cpu", dtype, seed=0)
    assert model.engine == "kernels", f"the kernels do not compute {name} here"
    prompt = torch.randint(model.vocab_size, (prompt_tokens,), generator=torch.Generator().manual_seed(0))
    plain = model if dtype == "bfloat16" else random_model(name, config_of(name), "cpu", "bfloat16", seed=0)
    seconds_of_a_round(model, plain, prompt, 2, 0)  # warms up
    seen = [seconds_of_a_round(model, plain, prompt, new_tokens, order) for order in range(rounds)]
    read = sum(weight.nbytes for weights in matrix_weights(model) for weight in weights)

    def ratio(of: str, to: str, times: float = 1.0) -> str:
        found = [each[of] / each[to] * times for each in seen]
        return f"{geometric_mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"

    bandwidth, tpot = (geometric_mean(each[piece] for each in seen) for piece in ("read", "ours"))
    cells = name, f"{read / 1e9:.2f}", f"{BUFFER / bandwidth / 1e9:.1f}", f"{tpot * 1e3:.2f}"
    return row(*cells, ratio("ours", "read", BUFFER / read), ratio("several", "one"), ratio("transformers", "ours"))


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shapes = ["qwen2.5-1.5b", "qwen2.5-0.5b"]
    parser.add_argument(
        "--shapes", nargs="+", default=shapes, help="names in models.yaml, or folders with a config.json"
    )
    parser.add_argument("--dtype", choices=["bfloat16", INT8], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds; aims: {', '.join(AIMS)}")
    print(row(*HEADINGS), row(*["---"] * len(HEADINGS)), sep="\n", flush=True)
    for name in options.shapes:
        print(line(name, options.dtype, options.rounds, options.prompt_tokens, options.new_tokens), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
