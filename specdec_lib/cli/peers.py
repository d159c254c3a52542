"""The commands that compare with other engines."""

from __future__ import annotations

from specdec_lib.cli.commands import (
    STUDY,
    Options,
    check_study,
    command,
    option,
    positive,
    study_params,
)


@command(
    *STUDY,
    option("--prompts", type=positive, metavar="N", help="first N of the prompt set (default: all)"),
    option("--new-tokens", type=positive, metavar="N", default=128, help="for each prompt (default: 128)"),
    option("--repetitions", type=positive, metavar="N", default=3, help="of every call (default: 3)"),
    example="--gpu cpu --prompts 6 --new-tokens 64",
)
def bench_peers(options: Options) -> int:
    """Time other engines next to ours: same weights, prompts and counting.

    Runs our engine interleaved with transformers and with the engines that make peers installed. Rows and a report go
    to <outputs>/<NAME>.
    """
    params = study_params(options)
    from specdec_lib.study.prompts import load_prompts

    number = options.prompts or len(load_prompts(params.prompt_set))
    timed = {"batch_sizes": [1], "prompt_tokens": [0], "num_prompts": number, "max_new_tokens": [options.new_tokens]}
    check_study(params.model_copy(update=timed))
    from specdec_lib.peers.run import run_peers
    from specdec_lib.report.pages import make_peers

    folder = options.outputs / params.gpu
    asked = {"num_prompts": options.prompts, "new_tokens": options.new_tokens, "repetitions": options.repetitions}
    rows = run_peers(params, folder, **asked)
    print(f"report: {make_peers(params, folder)}")
    return 1 if (rows["status"] == "failed").any() else 0


@command()
def peers(options: Options) -> int:
    """Install the other engines that bench-peers knows.

    Each goes into an environment of its own in the cache folder and is part of every later bench-peers on a CPU.
    """
    from specdec_lib.peers.installed import install_engines

    outcomes = install_engines()
    for engine, outcome in outcomes.items():
        print(f"{engine}: {outcome}")
    return 1 if any(outcome.startswith("failed") for outcome in outcomes.values()) else 0
