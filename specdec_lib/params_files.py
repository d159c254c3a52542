"""Find and read the params of a study: files in params/ or anywhere, folders of runs, overrides of a command."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from specdec_lib.config import StudyParams, near, validate_params

PARAMS_FOLDER = Path(__file__).resolve().parent.parent / "params"
OUTPUTS_FOLDER = PARAMS_FOLDER.parent / "outputs"
RUN_FACTS = "environment.json"  # in the folder of a run; holds its params
FORMER_KEYS = ("extra_repetitions", "interval_width")  # in old runs; they never changed a row's meaning
MODELS = ("target", "draft")  # the keys that name those of a custom pair


def available_params() -> list[str]:
    """The names that `make run GPU=<name>` knows."""
    return sorted(path.stem for path in PARAMS_FOLDER.glob("*.yaml"))


def load_params(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> StudyParams:
    """Read and check the params of a study.

    Args:
        name_or_path: a name in params/, a path to a YAML file anywhere, or the folder of a run, whose params are kept
            in its environment.json: its path, or its name under outputs/, such as published/cpu. The stem of a file is
            the name of its study.
        overrides: keys and values that replace those of the file, under the same checks.

    A path (prompt_set, target, draft) is relative to the folder of the params file that gives it, in overrides to the
    current directory. It is absolute in the result.

    Raises:
        ValueError: no such file, a file that is not YAML, or a key that is unknown, missing or out of range; one line
            that names the remedy.
    """
    path, found = _find_file(str(name_or_path))
    if path.is_dir():
        params = params_of_run(json.loads((path / RUN_FACTS).read_text(encoding="utf-8")), str(path / RUN_FACTS))
    else:
        said = _with_absolute_paths(_read_yaml(path), path.parent)
        params = validate_params({"gpu": path.stem} | said, source=path.name)
        if params.gpu != path.stem:
            raise ValueError(f"{path.name} says gpu: {params.gpu}: write {path.stem}, the name of the file, or nothing")
    if overrides:
        if overrides.get("gpu", params.gpu) != params.gpu:
            raise ValueError(f"overrides: gpu is {overrides['gpu']}: it is the name of the params file, {params.gpu}")
        said = _with_absolute_paths(overrides, Path.cwd())
        params = validate_params(params.model_dump() | said, source=f"overrides of {path.name}")
    if not found:
        params._file = str(path.resolve())
    return params


def finished_run(name_or_path: str | Path) -> Path | None:
    """The folder of the run that `load_params` would find; None for a params file, whose study is measured.

    Raises:
        ValueError: `load_params` would find nothing.
    """
    path, _ = _find_file(str(name_or_path))
    return path if path.is_dir() else None


def data_folder(name_or_path: str | Path, output_folder: str | Path | None = None) -> Path:
    """Where the data of a study is: `output_folder` if given, else the folder of the run, else outputs/<gpu>."""
    if output_folder is not None:
        return Path(output_folder)
    return finished_run(name_or_path) or OUTPUTS_FOLDER / load_params(name_or_path).gpu


def is_prompt_file(prompt_set: str) -> bool:
    """Whether this value of the key `prompt_set` is the path of a file, and no name of a set."""
    return "/" in prompt_set or os.sep in prompt_set or prompt_set.endswith(".jsonl")


def notebook_parameters(params: StudyParams) -> dict[str, Any]:
    """The `gpu` and `overrides` with which a notebook's `load_params(gpu, overrides)` returns the same params."""
    source = params._file or params.gpu
    loaded = load_params(source)
    located = {key for key in MODELS if (where := getattr(params, key)) and Path(where).is_absolute()}  # from here
    overrides = {key: value for key, value in params if value != getattr(loaded, key) or key in located}
    return {"gpu": source, "overrides": overrides}


def parse_overrides(text: str) -> dict[str, Any]:
    """Read `batch_sizes=[1,8] temperatures=[0] pair=toy`: keys, and their values in YAML.

    Raises:
        ValueError: what is not of that form; names it.
    """
    before, *parts = re.split(r"(?:^|(?<=\s))(\w+)=", text.strip())
    if before.strip():
        raise ValueError(f"overrides: {before.strip()!r} has no key: write key=value, such as batch_sizes=[1,8]")
    overrides: dict[str, Any] = {}
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        if key in overrides or not value.strip():
            problem = "is given twice" if key in overrides else "has no value"
            raise ValueError(f"overrides: {key} {problem}: write {key}=value once, null for none")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"overrides: the value of {key} is not valid YAML: {value.strip()}") from None
    return overrides


def params_of_run(facts: Mapping[str, Any], source: str) -> StudyParams:
    """The params that a run kept in its `environment.json`. A key that came later has its default.

    Raises:
        ValueError: there are none, or they are not valid; `source` names the file in the error.
    """
    kept = facts.get("params")
    if not isinstance(kept, dict):
        raise ValueError(f"{source} holds no params: run the study again, with make run GPU=<name>")
    return validate_params({key: value for key, value in kept.items() if key not in FORMER_KEYS}, source)


def _find_file(name_or_path: str) -> tuple[Path, bool]:
    """The file or run folder that is meant, and whether it is one of params/."""
    path = PARAMS_FOLDER / f"{name_or_path}.yaml"
    if path.parent == PARAMS_FOLDER and path.is_file():
        return path, True
    given = Path(name_or_path).expanduser()
    if given.is_file():
        return given, False
    for folder in (given, OUTPUTS_FOLDER / given):
        if (folder / RUN_FACTS).is_file():
            return folder, False
    names = available_params()
    raise ValueError(
        f"no params file for GPU={name_or_path}: choose one of {', '.join(names)}, or give the path of a YAML file "
        "or of a run's folder" + near(name_or_path, names)
    )


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice} is there twice")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds no keys: copy params/cpu.yaml and edit it")
    return data


def _with_absolute_paths(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same keys; paths are made absolute at once, because kernels and workers may run in another directory."""
    found = dict(data)
    prompt_set = data.get("prompt_set")
    if isinstance(prompt_set, str) and is_prompt_file(prompt_set):
        found["prompt_set"] = str((folder / Path(prompt_set).expanduser()).resolve())
    for key in MODELS:
        where = data.get(key)
        if isinstance(where, str) and where and not data.get(f"{key}_revision"):  # a revision is of a hub
            found[key] = _absolute_model(where, folder)
    return found


def _absolute_model(where: str, folder: Path) -> str:
    """The absolute path of a folder or GGUF file; a hub id stays what it is, but a folder of that name comes first."""
    given = Path(where).expanduser()
    if where.startswith((".", "~", os.sep)) or given.suffix == ".gguf":
        return str((folder / given).resolve())
    places = (base / given for base in (folder, Path.cwd()))
    return next((str(place.resolve()) for place in places if place.is_dir()), where)
