"""Predictions for GPUs that nobody here ran on: labelled, with a band, and held against the world."""

import pytest
import yaml
from synthetic_rows import study

from specdec_lib.analysis.cost_model.data_sheet import DataSheet, Range, corners
from specdec_lib.analysis.cost_model.gpus import predict
from specdec_lib.analysis.cost_model.published import AIM, published_table
from specdec_lib.hardware import catalog
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.models.shape import known_shape
from specdec_lib.params_files import load_params
from specdec_lib.report.captions.comparison import finding_published

H100 = load_params("h100")
PRICE = catalog.price(H100.price)


@pytest.mark.parametrize("gpu", ["a100", "h100", "h200"])
def test_the_gpu_presets_are_predicted_with_a_band(gpu):
    params = load_params(gpu)
    lines = predict(params, catalog.price(params.price))
    assert (lines["evidence"] == "predicted").all()
    assert len(lines) == len(params.batch_sizes) * len(params.prompt_tokens) * (1 + len(params.num_draft_tokens))
    for name in ("tpot_ms", "speedup", "tokens_per_second", "usd_per_million_tokens", "energy_joules_per_token"):
        assert (lines[f"{name}_low"] <= lines[name]).all()
        assert (lines[name] <= lines[f"{name}_high"]).all()
    assert (lines.loc[lines["method"] == "autoregressive", "speedup"] == 1).all()


def one(lines, batch, prompt, gamma):
    here = lines[(lines["batch_size"] == batch) & (lines["prompt_tokens"].fillna(0) == prompt)]
    found = here[here["num_draft_tokens"].fillna(0) == gamma]
    assert len(found) == 1
    return found.iloc[0]


def test_kernels_that_the_host_starts_one_by_one_are_never_faster_than_a_graph():
    gpu, (target, _) = catalog.load_gpus()["h100-sxm"], PRESETS[H100.pair]
    for batch in (1, 16, 256):
        graph, ours, eager = (
            DataSheet(gpu, corners(engine)[0], "bfloat16", engine) for engine in ("graph", "specdec_lib", "eager")
        )
        assert eager.pass_(target, batch, 1, 100) > graph.pass_(target, batch, 1, 100)
        assert eager.sampling(target, batch, 5) >= ours.sampling(target, batch, 5) > graph.sampling(target, batch, 5)


def test_predicted_throughput_counts_the_prefills_as_the_measured_one_does():
    """A long prompt costs a token per output token more than decoding alone, and with a draft it costs two models."""
    lines = predict(H100, PRICE)
    prompt, length = max(H100.prompt_tokens), H100.max_new_tokens[0]
    prefill = {}
    for gamma in (0, 4):
        line = one(lines, 32, prompt, gamma)
        seconds = line["batch_size"] * length / line["tokens_per_second"]
        prefill[gamma] = seconds - (length - 1) * line["tpot_ms"] / 1e3
        assert line["usd_per_million_tokens"] == pytest.approx(
            PRICE.usd_per_hour / 3600 / line["tokens_per_second"] * 1e6
        )
    assert prefill[4] > prefill[0] > 0
    target = known_shape(PRESETS[H100.pair][0])
    operations = 2 * target.layer_weights * 32 * prompt
    assert prefill[0] > operations / (catalog.load_gpus()["h100-sxm"].bf16_tflops * 1e12)


def test_a_better_draft_is_predicted_to_be_faster():
    low, high = (predict(H100, PRICE, Range(a, a, a))["speedup"].max() for a in (0.5, 0.9))
    assert high > low


@pytest.mark.parametrize(
    ("params", "price", "message"),
    [(H100, "cpu-2-vcpu", "of no GPU"), (study(), H100.price, "nothing is known of the size of pair 'toy-pair'")],
)
def test_what_cannot_be_predicted_is_refused(params, price, message):
    with pytest.raises(ValueError, match=message):
        predict(params, catalog.price(price))


def test_memory_holds_both_models_and_both_caches():
    target, draft = (known_shape(name) for name in PRESETS[H100.pair])
    one_row, two_rows = (predict(H100.model_copy(update={"batch_sizes": [batch]}), PRICE) for batch in (1, 2))
    without, with_draft = (
        one(two_rows, 2, 0, gamma)["memory_bytes"] - one(one_row, 1, 0, gamma)["memory_bytes"] for gamma in (0, 4)
    )
    assert with_draft / without == pytest.approx(1 + draft.key_values_per_token() / target.key_values_per_token())
    assert one(one_row, 1, 0, 0)["memory_bytes"] > target.bytes_kept(2)


def test_the_published_table_holds_what_was_promised():
    """At least ten points with source and date, from four places, and a median within the aim."""
    table = published_table()
    assert len(table) >= 10
    for place in ("gpt-fast", "Spec-Bench", "2601.11580", "2211.17192"):
        assert table["source"].str.contains(place).any()
    assert (table["source"] != "").all()
    assert ((table["ratio"] - 1).abs().median()) <= AIM
    assert "published points" in finding_published(table)


def test_the_papers_own_worst_miss_is_there_and_is_still_a_miss():
    table = published_table().set_index("point")
    miss = table.loc["leviathan-ende-large-t0"]
    assert (round(miss["predicted"], 1), miss["published"]) == (2.5, 1.7)
    assert round(table.loc["leviathan-ende-small-t0"]["predicted"], 1) == 3.2  # Table 4 of the paper


@pytest.mark.parametrize(("field", "value"), [("gpu", "a1000"), ("target", "x")])
def test_a_published_point_of_an_unknown_gpu_or_model_is_refused(tmp_path, field, value):
    facts = yaml.safe_load((catalog.FOLDER / "published.yaml").read_text())
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump({"p": facts["gpt-fast-7b-bf16"] | {field: value}}))
    with pytest.raises(ValueError, match=f"published.yaml: p: {field}: '{value}' is unknown"):
        catalog.load_published(path)
