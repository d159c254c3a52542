"""The command line: one line for a mistake, before anything is loaded."""

import re
from argparse import Namespace

import pytest
import torch
from checkpoints import write_checkpoint

from specdec_lib import __main__ as cli
from specdec_lib.cli import commands
from specdec_lib.params_files import load_params


def test_an_unknown_gpu_name_is_one_line_and_exit_code_2(capsys):
    assert cli.main(["run", "--gpu", "abacus"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no params file for GPU=abacus: choose one of ")
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_study_without_that_gpu_names_both(capsys, tmp_path):
    assert cli.main(["run", "--gpu", "h100", "--outputs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "'H100'" in error
    assert "no CUDA device" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "message"), [({"pair": "nope"}, "unknown pair"), ({"price": "nope"}, "nope")])
def test_what_does_not_exist_is_refused_before_the_first_notebook(change, message):
    with pytest.raises(ValueError, match=message):
        commands.check_study(load_params("smoke").model_copy(update=change))


@pytest.fixture
def study(tmp_path):
    """The smoke study with a tiny Llama of 128 positions, to whose tokenizer any text is one token."""
    pair = {"pair": "custom", "target": write_checkpoint(tmp_path / "t"), "draft": write_checkpoint(tmp_path / "d")}
    return load_params("smoke").model_copy(update=pair | {"prompt_tokens": [0], "max_new_tokens": [8]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": [0, 100]}, "prompt_tokens is 100: give at most 2, or add passages to the prompt set"),
        ({"prompt_tokens": [0, 1]}, "prompt_tokens is 1: give at least 2, which the chat template and task need"),
        ({"max_new_tokens": [8, 128]}, "prompts of 1 tokens and 128 new ones exceed the context .* 128 tokens: lower"),
    ],
)
def test_prompts_that_cannot_be_made_or_leave_no_room_are_refused_before_the_first_notebook(study, change, message):
    commands.check_study(study)
    with pytest.raises(ValueError, match=message):
        commands.check_study(study.model_copy(update=change))


def test_more_new_tokens_than_the_context_holds_are_refused_before_other_engines_load(study, monkeypatch, capsys):
    monkeypatch.setattr(commands, "load_params", lambda *_: study)
    assert cli.main(["bench-peers", "--gpu", "smoke", "--new-tokens", "500"]) == 2
    assert "500 new ones exceed the context" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], *([command.name] for command in cli.COMMANDS)])
def test_every_command_has_complete_help(command, capsys):
    """A description, and a line on every option."""
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    usage, description, *_ = said.split("\n\n")
    assert usage.startswith("usage: python -m specdec_lib")
    assert description.endswith(".")
    assert not re.findall(r"^  -.*[A-Z]$", said, flags=re.MULTILINE)  # an option without a word on it


@pytest.mark.parametrize("command", ["report", "publish", "rerun 0123"])
def test_a_folder_without_a_run_is_named(command, tmp_path, capsys):
    assert cli.main([*command.split(), "--gpu", "smoke", "--outputs", str(tmp_path)]) == 2
    assert f"{tmp_path / 'smoke'} holds no run: make one with make run GPU=<name>" in capsys.readouterr().err


def test_the_run_of_a_study_is_found_by_name_by_params_file_and_by_folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "environment.json").write_text("{}")
    for given in ("mine", "elsewhere/mine.yaml", str(folder)):
        assert commands.run_folder(Namespace(gpu=given, outputs=tmp_path)) == folder


def test_an_error_that_nobody_expected_is_one_line_unless_the_traceback_is_asked_for(capsys, monkeypatch):
    def broken(*_):
        raise KeyError("what is\nthis")

    monkeypatch.setattr(commands, "load_params", broken)
    assert cli.main(["params", "--gpu", "smoke"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: KeyError: ")
    assert error.count("\n") == 1
    for arguments in (["params", "--gpu", "smoke", "--debug"], ["--debug", "params", "--gpu", "smoke"]):
        assert cli.main(arguments) == 1
        assert "Traceback" in capsys.readouterr().err
