"""The command line behind the Makefile: `python -m specdec_lib <command>`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from specdec_lib.cli import commands
from specdec_lib.config import available_params

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
    parsers = parser.add_subparsers(required=True, metavar="command")
    _add_study_commands(parsers)
    _add_comparisons(parsers)
    _add_draft_commands(parsers)
    for command in parsers.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="as before the command")
    return parser


def _add_study_commands(parsers: Commands) -> None:
    run = parsers.add_parser(
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
    run.set_defaults(command=commands.run)
    shown = parsers.add_parser(
        "params",
        help="print all keys of a study's params, explained",
        description="Print every key of a study's params with its meaning, as a YAML file. Keys that differ from the "
        "default are marked.",
        epilog='Example: python -m specdec_lib params --gpu h100 --set "batch_sizes=[1,8] temperatures=[0]"',
    )
    _add_params(shown)
    shown.set_defaults(command=commands.params)
    report = parsers.add_parser(
        "report",
        help="render the HTML report again from what is on disk",
        description="Render reports, index and the overview of all runs again from the executed notebooks and the "
        "table in <outputs>/<NAME>. Nothing is measured.",
    )
    _add_study(report)
    report.set_defaults(command=commands.report)
    check = parsers.add_parser(
        "gpu-check",
        help="check a machine in about a minute: device, exactness, a short sweep",
        description="A verdict for every item that a study on a CUDA machine depends on, in about a minute.",
    )
    _add_params(check)
    check.set_defaults(command=commands.gpu_check)
    publish = parsers.add_parser(
        "publish",
        help="keep a run under outputs/published and in the README's headline",
        description="Copy table, reports and index of <outputs>/<NAME> to <outputs>/published/<NAME>, draw the "
        "headline figure and write the headline numbers into README.md. Refuses a run with failed cells.",
    )
    _add_study(publish)
    publish.set_defaults(command=commands.publish)
    certify = parsers.add_parser(
        "certify",
        help="write the certificate of exactness; fails if anything is not exact",
        description="Put a study's samplers to the exactness tests alone and write <outputs>/<NAME>/exactness.json.",
    )
    _add_study(certify)
    certify.add_argument("--thorough", action="store_true", help="ten times the samples and more, for hours")
    certify.set_defaults(command=commands.certify)
    rerun = parsers.add_parser(
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
    rerun.set_defaults(command=commands.rerun)


def _add_comparisons(parsers: Commands) -> None:
    compare = parsers.add_parser(
        "compare",
        help="compare all finished runs, and predictions for GPUs without one",
        description="Execute and render the comparison notebook over every run below <outputs>. Nothing is measured.",
    )
    compare.add_argument("--gpu", nargs="*", default=[], metavar="NAME", help="only these studies (default: all)")
    compare.add_argument("--outputs", type=Path, default=OUTPUTS, help="root of the output folders (default: outputs)")
    compare.set_defaults(command=commands.compare)
    peers = parsers.add_parser(
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
        "--gammas",
        type=_positive,
        nargs="*",
        metavar="N",
        default=[],
        help="draft tokens (default: the headline's); lookup also copies 10",
    )
    peers.set_defaults(command=commands.bench_peers)
    install = parsers.add_parser(
        "peers",
        help="install the other engines that bench-peers knows",
        description="Install each of the other engines into an environment of its own in the cache folder. What is "
        "installed there is part of every later bench-peers on a CPU.",
    )
    install.set_defaults(command=commands.peers)


def _add_draft_commands(parsers: Commands) -> None:
    draft = parsers.add_parser(
        "draft",
        help="distil the shipped draft from nothing (a few hours on 2 cores)",
        description="Let the embedded target write a corpus, and train the shipped draft on it.",
    )
    _add_folder(draft, "--workdir", OUTPUTS / "draft", "where the corpus goes, several GB")
    draft.set_defaults(command=commands.draft)
    export = parsers.add_parser(
        "draft-export",
        help="write the plain draft as an ordinary Hugging Face checkpoint",
        description="Write the shipped plain draft with its tokenizer so that from_pretrained can load it.",
    )
    _add_folder(export, "--folder", OUTPUTS / "draft-export", "where to write it")
    export.set_defaults(command=commands.draft_export)
    audit = parsers.add_parser(
        "audit",
        help="look up the pinned dependencies in the database of known vulnerabilities",
        description="Print each known vulnerability of a pinned dependency. Exit code 2 says that nothing could be "
        "looked up, for want of the network.",
    )
    audit.add_argument("--pip-audit", type=Path, required=True, metavar="PROGRAM", help="what make audit installs")
    audit.set_defaults(command=commands.audit)


def _add_study(parser: argparse.ArgumentParser) -> None:
    _add_params(parser)
    _add_folder(parser, "--outputs", OUTPUTS, "root of the output folders")


def _add_params(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(available_params())
    parser.add_argument(
        "--gpu", required=True, metavar="NAME", help=f"a file in params/ ({names}) or the path of a YAML file"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='replace keys of the params, values in YAML: "batch_sizes=[1,8] temperatures=[0]"',
    )


def _add_folder(parser: argparse.ArgumentParser, name: str, default: Path, help_text: str) -> None:
    parser.add_argument(name, type=Path, metavar="FOLDER", default=default, help=f"{help_text} (default: {default})")


def _positive(text: str) -> int:
    """A whole number above 0, else argparse's error."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


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
