"""One process of a torchrun in test_tensor_parallel: decode with a pair whose target is spread, and say the tokens.

`python tensor_parallel_ranks.py TENSOR_PARALLEL FOLDER ...`: each folder holds a target and a draft.
What was said appears as rank-<n>.json beside the first folder.
"""

import json
import os
import sys
from pathlib import Path

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.methods import make_proposer
from specdec_lib.models.pair import load_pair
from specdec_lib.study.transformers_generate import transformers_decode

PROMPTS = [torch.tensor([3, 4, 5, 6, 7]), torch.tensor([8, 9])]


def decode(pair, temperature):
    """Tokens of the baseline and of both ways of speculating; at temperature 0 of transformers.generate as well."""
    same = {"max_new_tokens": 10, "sampling": SamplingConfig(temperature=temperature)}

    def generator():
        return torch.Generator(pair.target.device).manual_seed(7)

    results = {"baseline": autoregressive_decode(pair.target, PROMPTS, generator=generator(), **same)}
    for method in ("draft", "ngram"):
        proposer = make_proposer(method, pair)
        results[method] = speculative_decode(
            pair.target, proposer, PROMPTS, num_draft_tokens=3, generator=generator(), **same
        )
    if temperature == 0:
        results["transformers"] = transformers_decode(pair.target, PROMPTS, seed=7, **same)
    return {name: [row.tolist() for row in result.tokens] for name, result in results.items()}


def everything(tensor_parallel, folders):
    """All of the above for each pair, and how many key/value heads this process keeps."""
    said = {}
    for folder in folders:
        pair = load_pair(
            target=f"{folder}/target", draft=f"{folder}/draft", dtype="float32", tensor_parallel=tensor_parallel
        )
        said[folder] = {f"T={temperature}": decode(pair, temperature) for temperature in (0, 1)}
        said[folder]["heads"] = pair.target.new_cache(1, 8).layers[0].keys.shape[1]
        said[folder]["files"] = pair.files
    return said


if __name__ == "__main__":
    said = everything(int(sys.argv[1]), sys.argv[2:])
    (Path(sys.argv[2]).parent / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()
