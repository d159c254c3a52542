"""What all commands share: how a function becomes a command, their common options, and the checks before a study.

A new command is one function in this folder and its name in the list of `__main__.py`. Functions import what they need
when they run, so that `--help` and most mistakes are answered without PyTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from specdec_lib.config import StudyParams
from specdec_lib.params_files import RUN_FACTS, available_params, load_params, parse_overrides

if TYPE_CHECKING:
    Parsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

Options = argparse.Namespace
AddOption = Callable[[argparse.ArgumentParser], object]


@dataclass(frozen=True)
class Command:
    """A function of the options that returns the exit code. Its name and docstring are the command's."""

    function: Callable[[Options], int]
    options: tuple[AddOption, ...]
    example: str  # arguments of a typical call

    @property
    def name(self) -> str:
        """What the user types."""
        return self.function.__name__.replace("_", "-")

    def add_to(self, parsers: Parsers) -> None:
        """Add the parser of this command."""
        help_text = self.function.__doc__ or ""
        parser = parsers.add_parser(
            self.name,
            help=help_text.partition("\n")[0].rstrip("."),
            description=" ".join(help_text.split()),
            epilog=f"Example: python -m specdec_lib {self.name} {self.example}".rstrip(),
        )
        for add in self.options:
            add(parser)
        parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")
        parser.set_defaults(function=self.function)


def command(*options: AddOption, example: str = "") -> Callable[[Callable[[Options], int]], Command]:
    """Make a function a command with these options."""
    return lambda function: Command(function, options, example)


def option(*names: str, **settings: Any) -> AddOption:
    """An option, with the arguments of `ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **settings)


def folder(name: str, default: Path, text: str) -> AddOption:
    """An option that takes a folder."""
    return option(name, type=Path, metavar="FOLDER", default=default, help=f"{text} (default: {default})")


def positive(text: str) -> int:
    """The type of an option that takes a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


OUTPUTS = folder("--outputs", Path("outputs"), "root of the output folders")
PARAMS = (
    option(
        "--gpu",
        required=True,
        metavar="NAME_OR_PATH",
        help=f"a file in params/ ({', '.join(available_params())}), or the path of a YAML file or of a run's folder",
    ),
    option(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='replace keys of the params, values in YAML: "batch_sizes=[1,8] temperatures=[0]"',
    ),
)
STUDY = (*PARAMS, OUTPUTS)
RUN_HELP = "a study's name, its params file, or the folder of its run"
RUN = (option("--gpu", required=True, metavar="NAME_OR_PATH", help=RUN_HELP), OUTPUTS)


def study_params(options: Options) -> StudyParams:
    """The params that `--gpu` and `--set` ask for."""
    return load_params(options.gpu, parse_overrides(" ".join(options.set)))


def study_name(name_or_path: str) -> str:
    """The name of the study that `--gpu` means, which is also that of its folder."""
    path = Path(name_or_path)
    return path.stem if path.suffix in (".yaml", ".yml") else path.name


def run_folder(options: Options) -> Path:
    """The folder of the finished run that `--gpu` means; ValueError if there is none."""
    given = Path(options.gpu)
    path: Path = given if (given / RUN_FACTS).is_file() else options.outputs / study_name(options.gpu)
    if not (path / RUN_FACTS).is_file():
        raise ValueError(f"{path} holds no run: make one with make run GPU=<name>, or give the folder of one")
    return path


def check_study(params: StudyParams) -> None:
    """Refuse a study that cannot run here, by a ValueError with the remedy, before anything is loaded.

    It has the wrong device, an unknown prompt set or price, a pair that cannot work, prompts that do not fit it, or
    needs more memory than its GPU has.
    """
    from specdec_lib.hardware.catalog import price
    from specdec_lib.machine.environment import check_device, check_product, product_here
    from specdec_lib.models.pair import check_study_pair
    from specdec_lib.study.dry_run.memory_plan import check_memory
    from specdec_lib.study.prompts import check_prompts, load_prompts

    check_device(params)
    price(params.price)
    check_product(params, product_here(params.device))
    load_prompts(params.prompt_set, params.turns)
    if read := check_study_pair(params):
        check_prompts(params, *read)
    if params.device == "cuda":
        check_memory(params)
