"""Known vulnerabilities of the pins: a stand-in for pip-audit gives each of the answers that the real one gives."""

import json

import pytest

from specdec_lib.__main__ import main
from specdec_lib.cli.audit import known_vulnerabilities

CLEAN = {"name": "idna", "version": "3.20", "vulns": []}
AFFECTED = {"name": "bleach", "version": "1.0", "vulns": [{"id": "CVE-2018-7753", "fix_versions": ["2.1.3"]}]}
UNKNOWN = {"name": "idna", "skip_reason": "Dependency not found on PyPI and could not be audited: idna (3.20)"}


@pytest.fixture
def answering(tmp_path):
    """A program that prints what pip-audit would, and leaves its arguments in a file beside it."""

    def program(said, complaint="", code=0):
        path = tmp_path / "pip-audit"
        show = f"echo \"$@\" >{tmp_path}/arguments\ncat <<'END'\n{said}\nEND\n"
        path.write_text(f"#!/bin/sh\n{show}echo '{complaint}' >&2\nexit {code}\n")
        path.chmod(0o755)
        return path

    return program


def test_no_known_vulnerability_is_success(answering, tmp_path, capsys):
    program = answering(json.dumps({"dependencies": [CLEAN]}))
    assert main(["audit", "--pip-audit", str(program)]) == 0
    assert "no known vulnerability" in capsys.readouterr().out
    assert "--strict --require-hashes --disable-pip" in (tmp_path / "arguments").read_text()


def test_a_vulnerability_is_named_and_fails(answering, capsys):
    program = answering(json.dumps({"dependencies": [CLEAN, AFFECTED]}), code=1)
    assert main(["audit", "--pip-audit", str(program)]) == 1
    assert capsys.readouterr().out == "bleach 1.0: CVE-2018-7753, fixed in 2.1.3\n"


@pytest.mark.parametrize(
    ("said", "complaint", "code"),
    [
        ("", "requests.exceptions.ConnectionError: name or service not known", 1),
        (json.dumps({"dependencies": [UNKNOWN]}), "No known vulnerabilities found", 0),  # what it says of a bare mirror
    ],
)
def test_no_answer_is_never_taken_for_a_good_one(answering, capsys, said, complaint, code):
    program = answering(said, complaint, code)
    assert main(["audit", "--pip-audit", str(program)]) == 2
    error = capsys.readouterr().err
    assert "the audit needs the network" in error
    assert error.count("\n") == 1


def test_a_missing_program_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="run make audit, which installs it"):
        known_vulnerabilities(tmp_path / "nowhere")
