"""The command line: `python -m specdec_lib <command>`. Each target of the Makefile is a thin call of one command."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import NoReturn

from specdec_lib.cli import engines, gpu, study

COMMANDS = (
    study.run,
    study.params,
    study.certify,
    study.advise,
    study.report,
    study.publish,
    study.compare,
    study.rerun,
    study.gpu_check,
    gpu.gpu_rehearsal,
    gpu.gpu_first,
    gpu.gpu_bundle,
    engines.bench_peers,
    engines.peers,
    engines.audit_engines,
    study.draft,
)
INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. An error is one line; with `--debug` its traceback comes first."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.function(options)
        return code
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one line unless the traceback is asked for
        if options.debug:
            traceback.print_exc()
        expected = isinstance(error, ValueError | RuntimeError)
        reason = " ".join(str(error).split())
        message = reason if expected else f"{type(error).__name__}: {reason} (--debug shows the traceback)"
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m specdec_lib",
        description=__doc__,
        epilog="Exit codes: 0 all went well, 1 part of it failed, 2 it could not start, 130 interrupted.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parsers = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_to(parsers)
    return parser


def run_and_exit() -> NoReturn:
    """Run the command of the shell. After Ctrl-C, do not wait for the seconds in which libraries tidy up."""
    code = main()
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()
