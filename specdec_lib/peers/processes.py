"""Engines that live in environments of their own as ways to decode, beside ours and transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.models.pair import Pair
from specdec_lib.peers.install import PEERS, PeerWorker, environment, installed
from specdec_lib.peers.llama import ENGINE as LLAMA
from specdec_lib.peers.llama import llama_model
from specdec_lib.peers.openvino import ENGINE as OPENVINO
from specdec_lib.peers.openvino import openvino_model
from specdec_lib.peers.ways import AUTOREGRESSIVE, NGRAM, Decode, Way, lookup_gammas
from specdec_lib.study.timing import result_of_arrivals

GREEDY_ONLY = {(OPENVINO, "draft")}  # sampling, it kept more draft tokens here than an exact rule can
GREEDY_ONLY |= {(LLAMA, method) for method in (AUTOREGRESSIVE, "ngram", "draft")}  # its sampling was not looked into


def installed_ways(
    plain: Pair, target: str, draft: str, gammas: Sequence[int], context: int, stack: ExitStack
) -> list[Way]:
    """Every engine that `make peers` installed: its baseline, its n-gram lookup, and the same draft, with every gamma.

    Each way is a process of its own, loaded here and ended by `stack`. One that cannot load is a way that fails.

    Args:
        target, draft: folders of the checkpoints, or hub ids.
        context: the most tokens of prompt and output together.
    """
    settings: list[tuple[str, str | None, int | None]] = [(AUTOREGRESSIVE, None, None)]
    settings += [("ngram", NGRAM, gamma) for gamma in lookup_gammas(gammas)]
    settings += [("draft", plain.draft_id, gamma) for gamma in gammas]
    ways = []
    for engine in filter(installed, PEERS):
        for method, draft_id, gamma in settings:
            home = environment(engine)
            log = home.parent / f"{engine}-{method}-{gamma or 0}.log"
            print(f"loading {engine} {method}", flush=True)
            try:
                load = {
                    "target": _readable(engine, target, plain.target.dtype),
                    "draft": _readable(engine, draft, plain.target.dtype),
                    "method": method,
                    "num_draft_tokens": gamma,
                    "dtype": str(plain.target.dtype).removeprefix("torch."),
                    "threads": torch.get_num_threads(),
                    "context": context,
                }
                worker = stack.enter_context(PeerWorker(home / "bin" / "python", PEERS[engine].module, load, log))
            except (RuntimeError, ValueError) as error:
                ways.append(Way(engine, "unknown", method, plain.name, draft_id, gamma, _failing(str(error))))
            else:
                greedy = (engine, method) in GREEDY_ONLY
                ways.append(Way(engine, worker.version, method, plain.name, draft_id, gamma, asking(worker), greedy))
    return ways


def _readable(engine: str, checkpoint: str, dtype: torch.dtype) -> str:
    """The checkpoint in the format of the engine: the same weights, converted where it reads no other."""
    if engine == OPENVINO:
        return str(openvino_model(Path(checkpoint)))
    return str(llama_model(Path(checkpoint), dtype)) if engine == LLAMA else checkpoint


def asking(worker: PeerWorker) -> Decode:
    """Decoding by a process."""

    def decode(prompt: torch.Tensor, new_tokens: int, sampling: SamplingConfig, seed: int) -> DecodeResult:
        chosen = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        answer = worker.ask({"prompt": prompt.tolist(), "new_tokens": new_tokens, "seed": seed} | chosen)
        arrivals = [(float(seconds), int(count)) for seconds, count in answer["arrivals"]]
        return result_of_arrivals([torch.tensor(answer["tokens"])], arrivals)

    return decode


def _failing(reason: str) -> Decode:
    def decode(prompt: torch.Tensor, new_tokens: int, sampling: SamplingConfig, seed: int) -> DecodeResult:
        raise RuntimeError(reason)

    return decode
