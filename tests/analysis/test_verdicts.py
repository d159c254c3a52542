"""What a run says at the top of its index: does it pay, up to which batch size, what to set, what does not count."""

from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis.headline import headline
from specdec_lib.analysis.verdicts import command_for, exclusions, prompts_used, verdicts
from specdec_lib.params_files import load_params
from specdec_lib.report.captions.verdict import answer, best_sentence, evidence_sentence, in_short, verdict_sentence
from specdec_lib.report.tables.sweep import method_table

PARAMS = study(prompt_tokens=[0], max_new_tokens=[48])
ROWS = synthetic_rows(PARAMS)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(1.1, 1.4, "yes"), (0.9, 1.2, "unclear"), (0.5, 0.8, "no"), (np.nan, np.nan, "unclear")],
)
def test_speculation_pays_only_if_the_whole_interval_says_so(low, high, said):
    assert answer(SimpleNamespace(speedup=1.0, speedup_low=low, speedup_high=high)) == said


def test_a_verdict_names_method_and_prompts_and_what_larger_batches_gain():
    greedy, sampled = verdicts(ROWS, PARAMS)
    assert verdict_sentence(greedy).startswith("Yes at batch 1, greedy (T = 0): 1.")
    evidence = evidence_sentence(greedy)
    assert evidence.startswith("By draft model, γ = 4, chosen before the run, over 5 prompts; whole calls 1.")
    assert evidence.count("× and ") == evidence.count("× at batch ") == len(PARAMS.batch_sizes) - 1
    assert verdict_sentence(sampled) in in_short(ROWS, PARAMS)


def test_the_fastest_setting_stands_next_to_the_verdicts_on_the_same_prompts():
    (verdict, _), method = verdicts(ROWS, PARAMS), PARAMS.methods[0]
    said = best_sentence(verdict)
    assert said.startswith("Of 8 settings on the 5 prompts that ran all of them, ")
    if (verdict.best.method, verdict.best.num_draft_tokens) == (method, PARAMS.headline_num_draft_tokens):
        assert "this is the fastest" in said
    else:
        assert f"the verdict's has {verdict.there.speedup:.2f}×" in said


def test_the_best_setting_is_chosen_among_settings_with_the_same_prompts():
    """Prompt 0 decodes with every gamma; the others, on which gamma 4 is made fast, with gamma 4 alone."""
    rows = ROWS[(ROWS["prompt_group"] == 0) | ROWS["num_draft_tokens"].isna() | (ROWS["num_draft_tokens"] == 4)].copy()
    rows.loc[(rows["num_draft_tokens"] == 4) & (rows["prompt_group"] > 0), "tpot_ms"] /= 10
    assert verdicts(rows, PARAMS)[0].best.num_prompts == 1


def test_all_temperatures_have_the_same_prompts():
    rows = ROWS.copy()
    rows.loc[(rows["prompt_group"] == 3) & (rows["temperature"] == 1), "drifted"] = True
    assert set(headline(rows, PARAMS)["num_prompts"]) == {4}
    assert prompts_used(rows, PARAMS) == ["p0", "p1", "p2", "p4"]
    assert exclusions(rows) == {"drift": int(rows["drifted"].fillna(False).sum())}
    assert exclusions(ROWS) == {}


def test_the_command_repeats_the_setting_with_what_the_run_had_changed():
    params = load_params("cpu", {"num_prompts": 12, "repetitions": 5})
    line = SimpleNamespace(method="draft", num_draft_tokens=2, temperature=0.0)
    said = command_for(line, params)
    assert said.startswith('make run GPU=cpu SET="num_prompts=12 repetitions=5 methods=[draft] num_draft_tokens=[2] ')
    assert "temperatures=[0]" in said
    assert "prompt_tokens=[0]" in said
    assert "GPU=path/to/synthetic.yaml " in command_for(line, PARAMS)


def test_nothing_measured_is_said():
    assert verdicts(ROWS.iloc[:0], PARAMS) == []
    assert "no row of draft model counts" in in_short(ROWS.iloc[:0], PARAMS)
    (without, _) = verdicts(ROWS[ROWS["method"] != "autoregressive"], PARAMS)
    assert verdict_sentence(without) == "Unclear (not measured) at batch 1, greedy (T = 0)."
    assert method_table(headline(ROWS.iloc[:0], PARAMS)).empty


def test_a_line_per_method_has_its_numbers_at_each_temperature():
    table = method_table(headline(ROWS, PARAMS)).set_index("method")
    assert list(table.index) == ["autoregressive", "draft model", "n-gram lookup"]
    assert table.loc["autoregressive", "acceptance, T = 0"] == "–"
    assert table.loc["draft model", "speedup, T = 0"].startswith("1.")
    assert {"whole calls, T = 1", "tokens per pass, T = 1"} <= set(table.columns)
