"""The certificate: what it shows, that it fails for what an exact implementation would not do, and that it is data."""

import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from quick_kernel import few

from specdec_lib.exactness import certificate as data
from specdec_lib.exactness import certify as measuring
from specdec_lib.exactness import mutant_battery
from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.params_files import load_params
from specdec_lib.report.captions import exactness as captions
from specdec_lib.report.tables import exactness as tables


@pytest.fixture(scope="module")
def params():
    return load_params("smoke")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certificate")


@pytest.fixture(scope="module")
def certificate(params, folder):
    """A small one of the toy pair. A sound sampler fails with a chance of at most 1e-6; seeds are fixed.

    All mutants are put to all levels in `test_mutants`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mutant_battery, "systems", few(mutant_battery.systems))
        small = replace(measuring.QUICK, toy=500, mutants=500, tiny=20, settings=[(1, measuring.FILTERS[0])])
        patch.setattr(measuring, "QUICK", small)
        return data.certify_or_read(params, folder)


def test_the_certificate_holds_and_says_what_it_shows(certificate):
    assert certificate.failures() == []
    sentence = certificate.sentence()
    assert sentence.startswith(
        "toy (float32, eager), draft model, at temperature 1, top-p 1, gamma 2, batch 4096: a total-variation bias in "
        "the law of pairs over the 4 most likely tokens and 16 groups of the others above 0."
    )
    assert "would have been detected with probability 0.999; none was. Up to " in sentence
    assert "% of the mass was seen only in sums. Certified are texts enumerated through (float64, eager)" in sentence
    assert sentence.endswith("sampled through (float32, eager); greedy through (float32, eager).")
    kernels = ["bfloat16, kernels"] * (why_no_kernels() is None)
    assert certificate.paths()["enumerated"] == ["float64, eager", *kernels]


def test_every_part_has_a_table_and_a_sentence(certificate):
    assert len(tables.law_table(certificate.tests)) == certificate.tests["sampler"].nunique() == 8
    assert len(tables.subject_table(certificate.subjects)) == 4
    assert set(tables.greedy_table(certificate.greedy)["equal rows"]) == {"4 of 4"}
    assert set(tables.enumeration_table(certificate.enumeration)["method"]) == {"draft model", "n-gram lookup"}
    assert tables.mutant_table(certificate.mutants)["joint law, samples"].unique().tolist() == ["1,500"]
    assert captions.finding_sampled(certificate.tests).startswith("In 8 of 8 samplers none of 28 tests finds a bias")
    assert captions.finding_greedy(certificate.greedy, certificate.divergences).startswith("In float32 24 of 24 greedy")
    assert "no bias was found" in captions.finding_subjects(certificate.subjects)
    checks = tables.four_checks(certificate)
    assert set(checks["outcome"]) == {"passed"}
    assert "the sound sampler is not rejected" in checks["evidence"][1]


def test_every_method_is_put_to_every_level(certificate, params):
    for table in (certificate.enumeration, certificate.tests, certificate.greedy):
        assert set(table["method"]) == set(params.methods)


def test_what_is_read_is_what_was_measured(certificate, folder):
    read = data.read_certificate(folder)
    for name in data.TABLES:
        pd.testing.assert_frame_equal(getattr(read, name), getattr(certificate, name).reset_index(drop=True))
    assert read.sentence() == certificate.sentence()
    assert read.failures() == []
    assert (folder / data.FILE).stat().st_size < 2**19


def test_a_certificate_that_serves_is_not_measured_again(certificate, params, folder, monkeypatch):
    monkeypatch.setattr(measuring, "certify", None)
    assert data.certify_or_read(params, folder).sentence() == certificate.sentence()
    assert data.certify_or_read(params.model_copy(update={"num_prompts": 3}), folder).failures() == []


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"methods": ["draft"]}, {"verification": ["mine"]}, {"correctness_samples": 9}, {"turns": "all"}],
)
def test_one_of_other_params_does_not_serve(certificate, params, change):
    assert certificate.serves(params)
    assert not certificate.serves(params.model_copy(update=change))


def test_one_from_before_the_key_turns_serves_first_turns(certificate, params):
    kept = {key: value for key, value in certificate.environment["params"].items() if key != "turns"}
    assert replace(certificate, environment=certificate.environment | {"params": kept}).serves(params)


def test_one_that_fails_lacks_a_table_or_is_of_another_version_does_not_serve(certificate, params):
    assert not replace(certificate, kept_failures=("a bias",)).serves(params)
    assert not replace(certificate, cells=pd.DataFrame()).serves(params)
    assert not replace(certificate, environment={**certificate.environment, "benchmark_version": 1}).serves(params)


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
def test_a_certificate_that_does_not_hold_names_what_is_wrong(certificate, part, column, value, message, tmp_path):
    table = getattr(certificate, part).copy()
    table.loc[0, column] = value
    broken = replace(certificate, **{part: table})
    assert broken.failures() == [message]
    data.write_certificate(broken, tmp_path)
    assert data.read_certificate(tmp_path).failures() == [message]


def test_there_is_none_before_the_first_run_and_an_old_one_lacks_tables(tmp_path):
    assert data.read_certificate(tmp_path) is None
    (tmp_path / data.FILE).write_text('{"passed": false, "failures": ["a bias"], "tests": [{"rejected": true}]}')
    old = data.read_certificate(tmp_path)
    assert old.kept_failures == ("a bias",)
    assert old.tests["rejected"].tolist() == [True]
    assert old.cells.empty


def test_reading_loads_nothing_that_measures():
    code = "import sys, specdec_lib.exactness.certificate; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {"torch", "transformers", "scipy", "statsmodels"} & set(loaded) == set()
