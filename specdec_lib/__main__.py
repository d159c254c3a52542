"""The command line behind the Makefile: `python -m specdec_lib <command>`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from specdec_lib.config import StudyParams, available_params, load_params

OUTPUTS = Path("outputs")
INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 if part of the study failed, 2 if it could not start."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (ValueError, RuntimeError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one line unless the traceback is asked for
        if options.debug:
            traceback.print_exc()
        reason = " ".join(str(error).split())
        print(f"error: {type(error).__name__}: {reason} (--debug shows the traceback)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m specdec_lib",
        description=__doc__,
        epilog="Exit codes: 0 all went well, 1 part of it failed, 2 it could not start, 130 interrupted.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_study_commands(commands)
    _add_comparisons(commands)
    _add_draft_commands(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="as before the command")
    return parser


def _add_study_commands(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="run the whole study and write its HTML report",
        description="Execute the notebooks with the params of one GPU and write table, reports and index to "
        "<outputs>/<NAME>. Finished cells are kept: the same command goes on where it stopped.",
        epilog="Example: python -m specdec_lib run --gpu cpu",
    )
    _add_study(run)
    run.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="spread the sweep over the devices of this Ray cluster; auto: the one that this machine belongs to",
    )
    run.set_defaults(command=_run)
    report = commands.add_parser(
        "report",
        help="render the HTML report again from what is on disk",
        description="Render reports, index and the overview of all runs again from the executed notebooks and the "
        "table in <outputs>/<NAME>. Nothing is measured.",
    )
    _add_study(report)
    report.set_defaults(command=_report)
    check = commands.add_parser(
        "gpu-check",
        help="check a machine in about a minute: device, exactness, a short sweep",
        description="A verdict for every item that a study on a CUDA machine depends on, in about a minute.",
    )
    check.add_argument("--gpu", required=True, metavar="NAME", help=f"params file: {', '.join(available_params())}")
    check.set_defaults(command=_gpu_check)
    publish = commands.add_parser(
        "publish",
        help="keep a run under outputs/published and in the README's headline",
        description="Copy table, reports and index of <outputs>/<NAME> to <outputs>/published/<NAME>, draw the "
        "headline figure and write the headline numbers into README.md. Refuses a run with failed cells.",
    )
    _add_study(publish)
    publish.set_defaults(command=_publish)
    certify = commands.add_parser(
        "certify",
        help="write the certificate of exactness; fails if anything is not exact",
        description="Put a study's samplers to the exactness tests alone and write <outputs>/<NAME>/exactness.json.",
    )
    _add_study(certify)
    certify.add_argument("--thorough", action="store_true", help="ten times the samples and more, for hours")
    certify.set_defaults(command=_certify)
    rerun = commands.add_parser(
        "rerun",
        help="decode one cell of a finished run again and compare its tokens",
        description="Decode a single cell of a finished run again, alone, and say in one line whether its tokens are "
        "the same. Nothing is measured or written. Exit code 1 if they differ.",
        epilog="Example: python -m specdec_lib rerun 0123456789abcdef --gpu cpu",
    )
    rerun.add_argument("cell_id", metavar="CELL_ID", help="of a row of results.parquet")
    rerun.add_argument("--gpu", metavar="NAME", help="the study that holds it (default: whichever does)")
    rerun.add_argument("--alone", action="store_true", help="decode each row of its batch by itself")
    _add_folder(rerun, "--outputs", OUTPUTS, "root of the output folders")
    rerun.set_defaults(command=_rerun)


def _add_comparisons(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare all finished runs, and predictions for GPUs without one",
        description="Execute and render the comparison notebook over every run below <outputs>. Nothing is measured.",
    )
    compare.add_argument("--gpu", nargs="*", default=[], metavar="NAME", help="only these studies (default: all)")
    compare.add_argument("--outputs", type=Path, default=OUTPUTS, help="root of the output folders (default: outputs)")
    compare.set_defaults(command=_compare)
    peers = commands.add_parser(
        "bench-peers",
        help="time other engines beside ours: same weights, prompts and counting",
        description="Run our engine interleaved with transformers, and with the engines that make peers installed, and "
        "write rows, ratios and a report to <outputs>/<NAME>.",
        epilog="Example: python -m specdec_lib bench-peers --gpu cpu --prompts 6 --new-tokens 64",
    )
    _add_study(peers)
    peers.add_argument("--prompts", type=_positive, metavar="N", help="first N of the prompt set (default: all)")
    peers.add_argument("--new-tokens", type=_positive, metavar="N", default=128, help="for each prompt (default: 128)")
    peers.add_argument("--repetitions", type=_positive, metavar="N", default=3, help="of everything (default: 3)")
    peers.add_argument(
        "--gammas", type=_positive, nargs="*", metavar="N", default=[], help="draft tokens (default: the headline's)"
    )
    peers.set_defaults(command=_bench_peers)
    install = commands.add_parser(
        "peers",
        help="install the other engines that bench-peers knows",
        description="Install each of the other engines into an environment of its own in the cache folder. What is "
        "installed there is part of every later bench-peers on a CPU.",
    )
    install.set_defaults(command=_peers)


def _add_draft_commands(commands: Commands) -> None:
    draft = commands.add_parser(
        "draft",
        help="distil the shipped draft from nothing (a few hours on 2 cores)",
        description="Let the embedded target write a corpus, and train the shipped draft on it.",
    )
    _add_folder(draft, "--workdir", OUTPUTS / "draft", "where the corpus goes, several GB")
    draft.set_defaults(command=_draft)
    export = commands.add_parser(
        "draft-export",
        help="write the plain draft as an ordinary Hugging Face checkpoint",
        description="Write the shipped plain draft with its tokenizer so that from_pretrained can load it.",
    )
    _add_folder(export, "--folder", OUTPUTS / "draft-export", "where to write it")
    export.set_defaults(command=_draft_export)
    audit = commands.add_parser(
        "audit",
        help="look up the pinned dependencies in the database of known vulnerabilities",
        description="Print each known vulnerability of a pinned dependency. Exit code 2 says that nothing could be "
        "looked up, for want of the network.",
    )
    audit.add_argument("--pip-audit", type=Path, required=True, metavar="PROGRAM", help="what make audit installs")
    audit.set_defaults(command=_audit)


def _add_study(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(available_params())
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"name of a file in params/, one of {names}")
    _add_folder(parser, "--outputs", OUTPUTS, "root of the output folders")


def _add_folder(parser: argparse.ArgumentParser, name: str, default: Path, help_text: str) -> None:
    parser.add_argument(name, type=Path, metavar="FOLDER", default=default, help=f"{help_text} (default: {default})")


def _positive(text: str) -> int:
    """A whole number above 0, else argparse's error."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    params = load_params(options.gpu)
    check_study(params)
    from specdec_lib.report import make_reports

    if options.cluster:
        os.environ["SPECDEC_CLUSTER"] = options.cluster  # the sweep runs in a notebook's kernel
    print(f"study {params.gpu}: pair {params.pair}, {params.dtype}, on {params.device}", flush=True)
    folder = options.outputs / params.gpu
    try:
        index = make_reports(params, options.outputs)
    finally:
        failed = _failed_cells(folder)
        for line in failed:
            print(f"failed cell: {line}", file=sys.stderr)
    print(f"report: {index.resolve()}")
    return 1 if failed else 0


def check_study(params: StudyParams) -> None:
    """Refuse a study that cannot run here, before anything is loaded.

    Raises:
        ValueError: wrong device, unknown prompt set or price, or a pair that cannot work; names the remedy.
    """
    from specdec_lib.hardware.catalog import price
    from specdec_lib.measure.environment import check_device
    from specdec_lib.measure.prompts import load_prompts
    from specdec_lib.models.pair import check_study_pair

    check_device(params)
    price(params.price)
    load_prompts(params.prompt_set)
    check_study_pair(params)


def _failed_cells(folder: Path) -> list[str]:
    from specdec_lib.analysis.metrics import failures
    from specdec_lib.measure.results import read_results

    if not (folder / "results.parquet").exists():
        return []
    lines = failures(read_results(folder)).drop_duplicates("cell_id")
    return [
        f"{line.cell_id} {line.engine} {line.method} batch {line.batch_size}: {line.error}"
        for line in lines.itertuples()
    ]


def _report(options: argparse.Namespace) -> int:
    from specdec_lib.report import render_reports, write_index

    params = load_params(options.gpu)
    folder = options.outputs / params.gpu
    render_reports(folder)
    print(f"report: {write_index(params, folder).resolve()}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from specdec_lib.analysis.comparison import find_runs
    from specdec_lib.report import make_comparison

    find_runs(options.outputs, options.gpu)  # refuses what must not be mixed, before anything is executed
    print(f"report: {make_comparison(options.outputs, options.gpu)}")
    return 0


def _bench_peers(options: argparse.Namespace) -> int:
    params = load_params(options.gpu)
    check_study(params)
    from specdec_lib.analysis.peers import peer_lines, write_peer_lines
    from specdec_lib.measure.peers import run_peers
    from specdec_lib.report import make_peers

    folder = options.outputs / params.gpu
    rows = run_peers(
        params,
        folder,
        num_prompts=options.prompts,
        new_tokens=options.new_tokens,
        repetitions=options.repetitions,
        gammas=options.gammas,
    )
    write_peer_lines(folder, peer_lines(rows, params.seed))
    print(f"report: {make_peers(params, folder)}")
    return 1 if (rows["status"] == "failed").any() else 0


def _peers(options: argparse.Namespace) -> int:
    from specdec_lib.measure.peer_install import install_peers

    outcomes = install_peers()
    for engine, outcome in outcomes.items():
        print(f"{engine}: {outcome}")
    return 1 if any(outcome.startswith("failed") for outcome in outcomes.values()) else 0


def _gpu_check(options: argparse.Namespace) -> int:
    from specdec_lib.gpu_check import FAIL, gpu_check

    failed = []
    for verdict in gpu_check(load_params(options.gpu)):
        print(f"{verdict.outcome:8s} {verdict.item} ({verdict.seconds:.0f} s): {verdict.detail}", flush=True)
        failed += [verdict.item] * (verdict.outcome == FAIL)
    print(f"verdict: {'not ready: ' + ', '.join(failed) if failed else 'ready for make run GPU=' + options.gpu}")
    return 1 if failed else 0


def _publish(options: argparse.Namespace) -> int:
    from specdec_lib.publish import publish

    params = load_params(options.gpu)
    published = publish(params, options.outputs / params.gpu, options.outputs / "published" / params.gpu)
    print(f"published: {published.resolve()}")
    return 0


def _certify(options: argparse.Namespace) -> int:
    import logging

    from specdec_lib.analysis import exactness, exactness_tables

    params = load_params(options.gpu)
    check_study(params)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = options.outputs / params.gpu
    certificate = exactness.certify(params, folder, options.thorough)
    print(exactness_tables.mutant_table(certificate.mutants).to_string(index=False))
    print(exactness_tables.law_table(certificate.tests).to_string(index=False))
    print(exactness_tables.subject_table(certificate.subjects).to_string(index=False))
    print(exactness_tables.finding_greedy(certificate.greedy, certificate.divergences))
    print(certificate.sentence())
    print(exactness_tables.finding_verdict(certificate))
    print(f"certificate: {(folder / exactness.FILE).resolve()}")
    return 1 if certificate.failures() else 0


def _rerun(options: argparse.Namespace) -> int:
    from specdec_lib.measure.rerun import find_run, rerun

    folder = options.outputs / options.gpu if options.gpu else find_run(options.outputs, options.cell_id)
    found = rerun(folder, options.cell_id, alone=options.alone)
    print(found.sentence())
    return 1 if found.different else 0


def _draft(options: argparse.Namespace) -> int:
    import logging

    from specdec_lib.distill import make_draft
    from specdec_lib.distill.make import FEATURE_LAYERS
    from specdec_lib.models.pair import load_embedded_target

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make_draft(options.workdir, *load_embedded_target(feature_layers=FEATURE_LAYERS))
    return 0


def _draft_export(options: argparse.Namespace) -> int:
    from specdec_lib.models.pair import DRAFTS_FOLDER, EMBEDDED_DRAFTS, load_embedded_target
    from specdec_lib.models.plain_draft import export_plain_draft

    target, tokenizer = load_embedded_target()
    export_plain_draft(DRAFTS_FOLDER / EMBEDDED_DRAFTS["smollm2-135m-embedded-plain"], options.folder, target)
    tokenizer.save_pretrained(options.folder)
    print(f"checkpoint: {options.folder.resolve()}")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from specdec_lib.audit import known_vulnerabilities

    found = known_vulnerabilities(options.pip_audit)
    print("\n".join(found) or "no known vulnerability in the pinned dependencies")
    return 1 if found else 0


def run_and_exit() -> NoReturn:
    """What the shell calls: as `main`, but Ctrl-C does not wait for the libraries' seconds of tidying up."""
    code = main()
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()
