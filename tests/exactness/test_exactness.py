"""The certificate: it says what was shown, and fails for each thing that an exact implementation would not do."""

import json
from dataclasses import replace

import pytest

from specdec_lib import __main__ as cli
from specdec_lib.config import load_params
from specdec_lib.exactness import certificate as exactness
from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.report.captions import exactness as captions
from specdec_lib.report.tables import exactness as tables


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A small one of the toy pair. A sound sampler fails with a chance of at most 1e-6; seeds are fixed."""
    folder = tmp_path_factory.mktemp("certificate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exactness, "QUICK", replace(exactness.QUICK, toy=500, mutants=500, tiny=20))
        patch.setattr("specdec_lib.exactness.adversaries._settings", lambda _: [(1, exactness.FILTERS[0])])
        certificate = exactness.certify(load_params("smoke"), folder)
    return certificate, exactness.read_certificate(folder)


def test_the_certificate_holds_and_says_what_it_shows(certificate):
    found, record = certificate
    assert found.failures() == []
    assert record["passed"]
    assert record["sentence"] == found.sentence()
    assert found.sentence().startswith(
        "toy (float32, eager), draft model, at temperature 1, top-p 1, gamma 2, batch 4096: a total-variation bias in "
        "the law of pairs over the 4 most likely tokens and 16 groups of the others above 0."
    )
    assert "would have been detected with probability 0.999; none was. Up to " in found.sentence()
    assert (
        "% of the mass was seen only in sums. Certified are texts enumerated through (float64, eager)"
        in found.sentence()
    )
    assert found.sentence().endswith("sampled through (float32, eager); greedy through (float32, eager).")
    assert record["paths"] == found.paths()
    assert found.paths()["enumerated"] == ["float64, eager"] + ["bfloat16, kernels"] * (why_no_kernels() is None)
    assert {"enumeration", "tests", "mutants", "greedy", "divergences", "subjects", "environment"} < set(record)


def test_every_part_has_a_table_and_a_sentence(certificate):
    found, _ = certificate
    assert len(tables.law_table(found.tests)) == found.tests["sampler"].nunique() == 7
    assert len(tables.subject_table(found.subjects)) == 4
    assert set(tables.greedy_table(found.greedy)["equal rows"]) == {"4 of 4"}
    assert captions.finding_sampled(found.tests).startswith("In 7 of 7 samplers none of 23 tests finds a bias")
    assert captions.finding_greedy(found.greedy, found.divergences).startswith("In float32 24 of 24 greedy outputs")
    assert "no bias was found" in captions.finding_subjects(found.subjects)
    assert "the sound sampler is not rejected" in captions.finding_verdict(found)


@pytest.mark.parametrize(
    ("part", "column", "value", "message"),
    [
        ("enumeration", "largest_error", 1e-11, "enumeration: random (float64, eager), gamma 1 is off"),
        ("enumeration", "unexplained", 0.1, "enumeration: random (float64, eager), gamma 1 is off"),
        (
            "tests",
            "rejected",
            True,
            "joint law: toy (float32, eager), draft model, gamma 2, T = 1 at position 0 is biased",
        ),
        ("mutants", "rejected", True, "mutants: wrong verdict on sound"),
        ("greedy", "equal_rows", 3, "greedy: draft, gamma 1 differs in float32"),
    ],
)
def test_a_certificate_that_does_not_hold_names_what_is_wrong(certificate, part, column, value, message):
    found, _ = certificate
    table = getattr(found, part).copy()
    table.loc[0, column] = value
    broken = replace(found, **{part: table})
    assert broken.failures() == [message]
    assert message in captions.finding_verdict(broken)
    assert not broken.record(load_params("smoke"))["passed"]


def test_the_command_fails_with_its_certificate(certificate, monkeypatch, tmp_path, capsys):
    found, _ = certificate
    monkeypatch.setattr(exactness, "certify", lambda *arguments: found)
    arguments = ["certify", "--gpu", "smoke", "--outputs", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert found.sentence() in capsys.readouterr().out
    table = found.mutants.assign(rejected=False)
    monkeypatch.setattr(exactness, "certify", lambda *arguments: replace(found, mutants=table))
    assert cli.main(arguments) == 1
    assert "mutants: wrong verdict on off-by-one target row" in capsys.readouterr().out


def test_there_is_no_certificate_before_the_first_run(tmp_path):
    assert exactness.read_certificate(tmp_path) is None
    (tmp_path / exactness.FILE).write_text(json.dumps({"passed": False}))
    assert exactness.read_certificate(tmp_path) == {"passed": False}
