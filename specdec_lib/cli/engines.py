"""The commands of other engines: how fast they are on the same work, and whether their samplers are exact."""

from __future__ import annotations

from pathlib import Path

from specdec_lib.cli.commands import OUTPUTS, STUDY, Options, check_study, command, option, positive, study_params


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

    number = options.prompts or len(load_prompts(params.prompt_set, params.turns))
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


@command(
    option("--only", metavar="NAME", nargs="+", default=[], help="the subjects with these words in their names"),
    option("--seconds", type=positive, default=30, metavar="S", help="of sampling a line, all runs together (30)"),
    option("--minutes", type=positive, default=30, metavar="M", help="for a subject in this run (30)"),
    option("--page", type=Path, metavar="FILE", help="where the page is written (docs/league.md)"),
    option("--table", action="store_true", help="write table and page again from what is on disk, without sampling"),
    OUTPUTS,
    example="--only transformers --seconds 60",
)
def audit_engines(options: Options) -> int:
    """Put every engine's samplers to the same test of exactness: the league table.

    Installs what is wanted, each engine into an environment of its own, and draws samples of every line on tiny models
    whose law is known. What is measured stays on disk: an interrupted run goes on where it stopped. The table goes to
    <outputs>/published/league and docs/league.md.
    """
    from specdec_lib.exactness.league.measure import Budget, measure
    from specdec_lib.exactness.league.subject import known_subjects
    from specdec_lib.report.league import PAGE, write_league

    subjects, results = known_subjects(), options.outputs / "league"
    chosen = [each for each in subjects if not options.only or any(word in each.name for word in options.only)]
    if not chosen:
        raise ValueError(f"no subject is named so: choose of {', '.join(each.name for each in subjects)}")
    if not options.table:
        measure(chosen, results, Budget(line_s=options.seconds, subject_s=60 * options.minutes))
    for path in write_league(subjects, results, options.outputs / "published" / "league", options.page or PAGE):
        print(path)
    return 0
