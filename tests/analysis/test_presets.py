"""What is predicted of every preset pair on a GPU: one line each, and a reason where there is no number."""

import pytest

from specdec_lib import __main__ as cli
from specdec_lib.analysis.presets import preset_table
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.params_files import load_params


@pytest.fixture(scope="module")
def tables():
    return {gpu: preset_table(load_params(gpu)).set_index("pair") for gpu in ("a100", "h100")}


def test_every_preset_has_a_speedup_with_its_band_or_a_reason(tables):
    for table in tables.values():
        assert list(table.index) == list(PRESETS)
        known = table[table["speedup"].notna()]
        assert ((known["speedup_low"] <= known["speedup"]) & (known["speedup"] <= known["speedup_high"])).all()
        unknown = table[table["speedup"].isna()]
        assert ((unknown["read"] == "row by row") | (unknown["weights"] == "fp8")).all()
    assert tables["h100"]["speedup"].notna().sum() == tables["a100"]["speedup"].notna().sum() + 2  # the A100 has no FP8


def test_quantised_and_sparse_targets_gain_less_from_the_same_draft(tables):
    """Their pass costs less, and the draft's as much; a mixture reads more experts to verify."""
    gain = tables["h100"]["speedup"]
    assert gain["qwen3-32b"] > gain["qwen3-32b-fp8"] > gain["qwen3-32b-awq"] > 1
    assert gain["gpt-oss-120b"] < 1 < gain["qwen3-30b-a3b"] < 1.1


def test_quantised_targets_leave_room_for_more_rows(tables):
    batch = tables["h100"]["largest_batch"]
    assert batch["qwen3-32b-awq"] > batch["qwen3-32b-fp8"] > batch["qwen3-32b"] > 0
    assert batch["llama-3.3-70b"] == 0


def test_the_lines_say_what_is_assumed(capsys):
    assert cli.main(["gpu-rehearsal", "--gpu", "a100", "--presets"]) == 0
    said = capsys.readouterr().out
    assert "acceptance 0.66 (0.57 to 0.75)" in said
    assert "not predicted: read row by row" in said
    assert "not predicted: the GPU does not compute in fp8" in said
