"""Our engine next to others: everyone decodes the same work, and ratios are paired by prompt."""

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import write_checkpoint

from specdec_lib.models.pair import load_pair
from specdec_lib.params_files import load_params
from specdec_lib.peers import lines as peers
from specdec_lib.peers import ways as peer_ways
from specdec_lib.peers.rows import read_peers
from specdec_lib.peers.run import run_peers
from specdec_lib.study.prompts import load_prompts


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """A study of two tiny random Llamas, in float32 so that every engine rounds to the same greedy tokens."""
    folder = tmp_path_factory.mktemp("models")
    target, draft = (write_checkpoint(folder / name, layers=n) for name, n in (("target", 2), ("draft", 1)))
    change = {"pair": "custom", "target": target, "draft": draft, "temperatures": [0.0, 1.0], "dtype": "float32"}
    return load_params("smoke", change | {"methods": ["draft", "ngram", "composite"]})


@pytest.fixture(scope="module", autouse=True)
def small_world():
    """No installed engines, whatever this machine has, and short prompts: the shipped ones exceed a tiny context."""
    patch = pytest.MonkeyPatch()
    ids = [torch.tensor([3, 4, 5]), torch.tensor([6, 7]), torch.tensor([8]), torch.tensor([9, 3, 9]), torch.tensor([4])]
    patch.setattr("specdec_lib.peers.run.encode_prompts", lambda prompts, *_: ids[: len(prompts)])
    patch.setattr("specdec_lib.peers.installed.known_engines", list)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def rows(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / params.gpu
    run_peers(params, folder, num_prompts=2, new_tokens=6, repetitions=2)
    return read_peers(folder)


def test_every_engine_runs_on_every_prompt_and_counts_the_same(rows):
    assert (rows["status"] == "ok").all()
    assert (rows["new_tokens"] == 6).all()
    calls = rows.groupby([*peers.WAY, "temperature"], dropna=False).size()
    assert set(calls) == {2 * 2}
    assert {(engine, method) for engine, method, *_ in calls.index} == {
        *(("specdec_lib", method) for method in ("autoregressive", "ngram", "draft", "composite")),
        *(("transformers", method) for method in ("autoregressive", "ngram", "draft")),
    }


def test_greedy_output_is_the_same_whoever_decodes(rows):
    greedy = rows[rows["temperature"] == 0]
    assert greedy.groupby("prompt_id")["tokens"].agg(lambda tokens: len({tuple(t) for t in tokens})).eq(1).all()
    assert peers.peer_lines(rows)["same_tokens"].dropna().eq(1).all()


def test_a_run_can_be_read_as_tables_and_sentences(rows):
    lines = peers.peer_lines(rows)
    table = peers.line_table(lines)
    assert len(table) == len(lines) == 2 * 10
    assert table["way"].str.startswith("ours, n-gram lookup, γ = 4").any()
    said = peers.finding_peers(lines)
    assert said.startswith("At T = 0 the fastest is ")
    assert said.count("; the next engine is ") == 2  # temperatures
    assert "2 prompts of the set" in peers.finding_setting(rows)


def test_the_embedded_draft_is_lent_to_others_as_the_very_same_model(tmp_path):
    """Their logits are those that our draft scores, up to the rounding of another order of sums."""
    plain = load_pair(peer_ways.PLAIN_PAIR, dtype="float32")
    theirs = peer_ways.load_draft(plain, peer_ways.draft_checkpoint(plain, tmp_path))
    ids = torch.arange(100, 110)[None]
    with torch.inference_mode():
        mine = plain.draft.logits(plain.draft.forward(ids, plain.draft.new_cache(1, 16)).hidden)
        scored = mine.isfinite()
        assert torch.allclose(theirs(ids).logits[scored], mine[scored], atol=1e-3)


def test_an_engine_that_fails_leaves_a_row_and_the_others_go_on(params, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("no such luck\nand a second line")

    monkeypatch.setattr(peer_ways, "autoregressive_decode", fail)
    rows = run_peers(params, tmp_path, num_prompts=1, new_tokens=4, repetitions=1)
    failed = peers.failures(rows)
    assert failed["temperature"].tolist() == [0, 1], "what fails at one temperature may not at another"
    assert set(zip(failed["engine"], failed["method"], strict=True)) == {("specdec_lib", "autoregressive")}
    assert set(failed["error"]) == {"RuntimeError: no such luck"}
    assert "failed: specdec_lib autoregressive" in capsys.readouterr().out
    assert (rows["status"] == "ok").sum() == 9 * 2
    assert peers.peer_lines(rows)["over_baseline"].isna().all()


def test_a_run_without_one_success_has_no_lines():
    rows = ROWS.assign(status="failed", tpot_ms=None)
    lines = peers.peer_lines(rows)
    assert peers.line_table(lines).empty
    assert peers.finding_peers(lines) == "No engine decoded every prompt."


def test_a_run_that_is_ended_leaves_what_came_before(params, tmp_path, monkeypatch):
    """By hand at the second prompt; what an earlier run had left in the same place is gone by then."""
    run_peers(params, tmp_path, num_prompts=2, new_tokens=4, repetitions=1)
    real = peer_ways.autoregressive_decode

    def decode(target, prompts, **options):
        if prompts[0].tolist() == [6, 7]:
            raise KeyboardInterrupt
        return real(target, prompts, **options)

    monkeypatch.setattr(peer_ways, "autoregressive_decode", decode)
    with pytest.raises(KeyboardInterrupt):
        run_peers(params, tmp_path, num_prompts=2, new_tokens=4, repetitions=1)
    rows = read_peers(tmp_path)
    assert rows["prompt_tokens"].eq(3).all()
    assert rows.groupby("temperature").size().tolist() == [10, 10]


def test_a_pair_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(ValueError, match="other engines cannot load the pair toy"):
        run_peers(load_params("smoke"), tmp_path, num_prompts=1, new_tokens=4, repetitions=1)


def test_reading_before_a_run_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="make bench-peers"):
        read_peers(tmp_path)


def synthetic(tpot, noise=0.02):
    """Rows of six prompts and two repetitions: `tpot` names ways as (engine, method, draft, gamma) with their time."""
    rng = np.random.default_rng(0)
    facts = {"status": "ok", "pair": "p", "temperature": 0.0, "engine_version": "1", "tokens": [1, 2]}
    names = ("engine", "method", "draft_id", "num_draft_tokens")
    return pd.DataFrame(
        facts
        | dict(zip(names, way, strict=True))
        | {"prompt_id": str(prompt), "repetition": n, "tpot_ms": ms * rng.uniform(1 - noise, 1 + noise)}
        for way, ms in tpot.items()
        for prompt in range(6)
        for n in range(2)
    )


ROWS = synthetic(
    {
        ("specdec_lib", "autoregressive", None, None): 10.0,
        ("specdec_lib", "ngram", "ngram", 4): 5.0,
        ("specdec_lib", "draft", "own", 4): 9.0,
        ("transformers", "autoregressive", None, None): 30.0,
        ("transformers", "draft", "shared", None): 60.0,
    }
)


def test_ratios_are_paired_by_prompt_and_have_an_interval():
    lines = peers.peer_lines(ROWS).set_index(["engine", "method"])
    ngram = lines.loc[("specdec_lib", "ngram")]
    assert ngram["over_baseline"] == pytest.approx(0.5, rel=0.03)
    assert ngram["over_baseline_low"] < ngram["over_baseline"] < ngram["over_baseline_high"]
    assert ngram["over_transformers"] == pytest.approx(1 / 6, rel=0.03)


def test_the_best_of_each_engine_stands_above_its_own_baseline_and_the_fastest_engine_first():
    best = peers.best_lines(peers.peer_lines(ROWS))
    assert list(zip(best["engine"], best["method"], strict=True)) == [
        *(("specdec_lib", "ngram"), ("specdec_lib", "autoregressive")),
        *(("transformers", "autoregressive"), ("transformers", "draft")),  # which its draft makes slower
    ]
    table = peers.line_table(best)
    assert table["TPOT (ms)"].str.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)").all()


def test_a_way_that_missed_a_prompt_has_no_line():
    missed = (ROWS["method"] == "ngram") & (ROWS["prompt_id"] == "3")
    lines = peers.peer_lines(ROWS.assign(status=np.where(missed, "failed", "ok")))
    assert "ngram" not in set(lines["method"])
    assert set(lines["prompts"]) == {6}


def test_the_prompt_set_starts_with_different_kinds_of_prompts():
    """So that the first N prompts are a fair choice."""
    assert len({prompt.category for prompt in load_prompts("mixed")[:6]}) >= 3
