"""What a target that is spread over several devices means for commands, prices and clusters."""

import pytest
from checkpoints import write_checkpoint
from toy_sweep import toy_params

from specdec_lib.__main__ import main
from specdec_lib.cli import commands
from specdec_lib.hardware.catalog import price
from specdec_lib.params_files import load_params
from specdec_lib.report.captions.cost import price_note
from specdec_lib.report.run_page import why_no_certificate
from specdec_lib.study.workers.cluster import Device


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """The study of toys with a tiny Llama that two processes can share, and a draft of its own."""
    root = tmp_path_factory.mktemp("pair")
    for name, layers in (("target", 2), ("draft", 1)):
        write_checkpoint(root / name, layers=layers, num_key_value_heads=2)
    pair = {"pair": "custom", "target": str(root / "target"), "draft": str(root / "draft")}
    return toy_params().model_copy(update=pair | {"tensor_parallel": 2})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensor_parallel": 4}, "has 2 heads and 2 key/value heads: choose a number that divides both"),
        ({"pair": "toy", "target": None, "draft": None}, "tensor_parallel is 2: toy is made for one device, give 1"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_one_line_before_anything_starts(
    params, change, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "load_params", lambda *_: params.model_copy(update=change))
    assert main(["run", "--gpu", "smoke", "--outputs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["certify", "bench-peers --new-tokens 8"])
def test_commands_of_one_process_refuse_a_spread_target(params, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "load_params", lambda *_: params)
    assert main([*command.split(), "--gpu", "smoke", "--outputs", str(tmp_path)]) == 2
    assert "needs that many processes, and there are 1" in capsys.readouterr().err


def test_a_group_of_blocks_asks_a_cluster_for_all_devices_of_a_target():
    four = load_params("h100").model_copy(update={"tensor_parallel": 4})
    assert Device.of(four) == Device("H100", gpus=4, cpus=4)
    machines = ({"CPU": 64.0, "GPU": gpus, "accelerator_type:H100": 1.0} for gpus in (2.0, 8.0))
    assert [Device.of(four).on(machine) for machine in machines] == [0, 2]


def test_an_hour_of_a_spread_target_costs_what_all_its_gpus_cost():
    one, study = price("aws-us-east-1-h100"), load_params("h100")
    four = one.times(study.model_copy(update={"tensor_parallel": 4}).num_devices)
    assert four.usd_per_hour == 4 * one.usd_per_hour
    assert price_note(four).startswith(f"at ${four.usd_per_hour:g} an hour: 4 GPUs of {one.vendor}, ")
    assert one.times(study.num_devices) == one
    assert load_params("cpu").model_copy(update={"tensor_parallel": 4}).num_devices == 1, "processes share a CPU"


def test_a_run_says_why_it_has_no_certificate(params):
    assert "needs the whole target in one process" in str(why_no_certificate(params))
    assert why_no_certificate(toy_params()) is None
