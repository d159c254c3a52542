"""The league: lines are measured in processes of their own, kept on disk, resumed, and judged. A made-up engine plays.

False alarms: the exact line is called biased with chance below 1e-6.
"""

import re

import pandas as pd
import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.exactness.joint_law import put_to_test
from specdec_lib.exactness.league import example
from specdec_lib.exactness.league import measure as measuring
from specdec_lib.exactness.league.measure import Budget, line_file, measure, read_result
from specdec_lib.exactness.league.subject import Subject, Way, lines_of
from specdec_lib.exactness.league.tiny_models import LETTERS, PROMPTS, load_tiny, tiny_models
from specdec_lib.exactness.league.verdict_names import BIASED, EXACT, GREEDY_ONLY, NOT_TESTED
from specdec_lib.exactness.league.verdicts import league_table
from specdec_lib.exactness.subjects import twins_subject
from specdec_lib.exactness.target_law import target_law
from specdec_lib.machine.own_environment import ServedProcess
from specdec_lib.report.league import write_league
from specdec_lib.report.league_page import answers, read_league

MADE_UP = """
import math
import random

SHARES = [0.4, 0.3, 0.2, 0.05, 0.05]  # of the letters, whatever came before

class Serving:
    def __init__(self, shares):
        self.shares = shares

    def sample(self, prompts, n, seed, length, temperature, top_k, top_p):
        draw = random.Random(seed)
        return [[draw.choices(range(5), self.shares, k=length) for _ in range(n)] for _ in prompts]

    def greedy(self, prompts, length):
        return [[0] * length for _ in prompts]

    def logits(self, texts):
        return [[math.log(share) for share in SHARES] + [-200.0] * 3 for _ in texts]

def load(subject, way, models, num_draft_tokens, dtype, threads):
    if way["method"] == "broken":
        raise OSError("no such model")
    return Serving([0.3, 0.4, 0.2, 0.05, 0.05] if way["method"] == "biased" else SHARES), "1.2"
"""
GIVEN = {"own_model": True, "samplings": ((1.0, 0, 1.0),)}
WAYS = (
    Way("none", "none", gammas=(0,), **GIVEN),
    Way("biased", gammas=(1,), report="made-up/engine#1", **GIVEN),
    Way("broken", gammas=(1,), **GIVEN),
    Way("absent", gammas=(1,), untestable="it needs a GPU", **GIVEN),
    Way("greedy", gammas=(4,), own_model=True, samplings=((0.0, 0, 1.0),)),
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECDEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def subject(tmp_path):
    """An engine that needs nothing but Python."""
    file = tmp_path / "made_up_subject.py"
    file.write_text(MADE_UP)
    return Subject(file, "made up", WAYS, reloads=True, dtypes=("float32",))


def test_each_line_gets_its_verdict_and_the_page_begins_with_the_answer(subject, tmp_path):
    measure([subject], tmp_path / "results", Budget(samples=2000))
    table = league_table([subject], tmp_path / "results").set_index("method")
    assert table["verdict"].tolist() == [EXACT, BIASED, NOT_TESTED, NOT_TESTED, GREEDY_ONLY]
    assert table.loc["none", "detectable_bias"] < 0.15
    biased = table.loc["biased"]
    assert biased["bias_low"] < biased["bias"] < biased["bias_high"]
    assert biased["bias_low"] < 0.16 < biased["bias_high"], "pairs of letters: worked out by hand"
    assert "bb +0.0" in biased["towards"]
    assert "OSError: no such model" in table.loc["broken", "reason"]
    assert table.loc["absent", "reason"] == "it needs a GPU"

    published, page = tmp_path / "published", tmp_path / "league.md"
    write_league([subject], tmp_path / "results", published, page)
    said = answers(read_league(published)[0]).iloc[0]
    assert said["biased: do not sample with"].startswith("biased [1 of 1 settings")
    assert said["exact so far"].startswith("no draft [< 0.")
    text = page.read_text()
    assert text.index("## The answer") < text.index("made up") < text.index("## Biased lines")
    assert "nan" not in text
    example = next((published / "examples").iterdir()).read_text()
    assert "show_bias('made up', 'biased, token, default', 1, (1.0, 0, 1.0)" in example
    greedy = read_league(published)[1].set_index("method")
    assert greedy.loc["greedy", "equal_own"] == greedy.loc["greedy", "texts"] == 24


def test_a_run_that_is_killed_goes_on_where_it_stopped(subject, tmp_path, monkeypatch):
    asked = []

    def ask(self, message, timeout_s, ask=ServedProcess.ask):
        if message["call"] == "sample":
            asked.append(message["seed"])
            if len(asked) == 3:
                raise KeyboardInterrupt
        return ask(self, message, timeout_s)

    monkeypatch.setattr(ServedProcess, "ask", ask)
    monkeypatch.setattr(measuring, "MOST_PER_CALL", 50)
    line = next(iter(lines_of(subject)))
    with pytest.raises(KeyboardInterrupt):
        measure([subject], tmp_path, Budget(samples=200))
    before = read_result(line_file(tmp_path, line))
    assert 0 < before["samples"] < 200
    measure([subject], tmp_path, Budget(samples=200))
    after = read_result(line_file(tmp_path, line))
    assert (after["samples"], after["calls"]) == (200, len({*asked[:2], *asked[3 : after["calls"] + 1]}))
    counted = [sum(sum(half[0][0].values()) for half in found["counts"]) for found in (before, after)]
    assert counted == [before["samples"], 200]
    calls = len(asked)
    measure([subject], tmp_path, Budget(samples=200))
    assert len(asked) == calls, "nothing is left to do"


def test_the_example_of_a_biased_line_shows_it_in_few_samples(subject, monkeypatch, capsys):
    monkeypatch.setattr(example, "known_subjects", lambda: [subject])
    lines = example.show_bias("made up", "biased, token, default", 1, (1.0, 0, 1.0), samples=400, position=1)
    assert "standard deviations" in capsys.readouterr().out
    assert re.search(r"then bb: 0\.090 due, 0\.1\d\d seen", "\n".join(lines))
    with pytest.raises(ValueError, match=r"no subject 'made up' with a way 'other'.* see docs/league.md"):
        example.show_bias("made up", "other", 1, (1.0, 0, 1.0), samples=1, position=0)


@pytest.mark.parametrize(
    "twin",
    [
        "no residual: resamples from the target",
        "bonus token from the draft",
        "off-by-one target row",
        "stale cache entry after a rollback",
    ],
)
def test_a_known_bad_twin_is_caught_on_the_tiny_models(twin):
    """A false catch has a chance below 1e-9."""
    serving, _ = twins_subject.load("", {"method": twin}, tiny_models()["checkpoint"], 2, "float32", 1)
    sampling = SamplingConfig(0.7, top_k=3)
    prompts, target = [torch.tensor(prompt) for prompt in PROMPTS], load_tiny("target")

    def sample(prompts, n, seed):
        given = {"length": 4, "temperature": 0.7, "top_k": 3, "top_p": 1.0}
        return [torch.tensor(rows) for rows in serving.sample([each.tolist() for each in prompts], n, seed, **given)]

    laws = [target_law(target, prompt, sampling, 4, width=len(LETTERS)) for prompt in prompts]
    options = {"sampling": sampling, "length": 4, "samples": 1024, "seed": 0, "laws": laws}
    tests, _ = put_to_test(sample, target, prompts, **options)
    assert tests["p_value"].min() < 1e-9


def test_the_published_table_catches_every_known_bad_twin_and_clears_our_own_lines():
    table, _ = read_league()
    verdicts = table.groupby("subject")["verdict"].unique()
    assert set(table.loc[table["kind"] == "twin", "method"]) == set(twins_subject.TWINS)
    assert verdicts["known-bad twins"].tolist() == [BIASED]
    ours = table["subject"].str.startswith("specdec_lib")
    assert set(table.loc[ours, "verdict"]) == {EXACT}


def test_a_table_without_results_is_no_error(subject, tmp_path):
    write_league([subject], tmp_path, tmp_path / "published", tmp_path / "league.md")
    table, _ = read_league(tmp_path / "published")
    assert set(table["verdict"]) == {NOT_TESTED, GREEDY_ONLY}
    assert answers(pd.DataFrame()).empty
