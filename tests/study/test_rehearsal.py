"""GPU studies on a device without contents: models of real width; what a GPU could not do is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

from specdec_lib import __main__ as cli
from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramDrafting, NgramProposer
from specdec_lib.hardware.catalog import load_gpus
from specdec_lib.machine.fake_device import FaultError
from specdec_lib.models import host_memory
from specdec_lib.models.loading import checkpoints
from specdec_lib.models.loading.checkpoints import config_of, random_model
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.models.pair import DRAFTS_FOLDER, load_pair
from specdec_lib.models.shape import known_shape
from specdec_lib.models.shipped_head import ShippedHead
from specdec_lib.params_files import load_params
from specdec_lib.study.dry_run import fake_gpu as there
from specdec_lib.study.dry_run import memory_plan
from specdec_lib.study.dry_run.fake_gpu import fake_gpu, fake_pair, share_of, short_pair
from specdec_lib.study.dry_run.memory_plan import Need, check_memory
from specdec_lib.study.dry_run.rehearsal import kinds_of_cells, rehearse

CUT = {
    "num_draft_tokens": [2], "headline_num_draft_tokens": 2, "batch_sizes": [2], "prompt_tokens": [0],
    "max_new_tokens": [32],
}  # fmt: skip
STUB = Path(__file__).parents[1] / "support" / "stub_nvml" / "nvml.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture
def two_layers(monkeypatch):
    """Every known model at its real width, and of two layers."""
    real = checkpoints.load_models()
    cut = {"num_hidden_layers": 2}
    short = {name: model.model_copy(update={"config": model.config | cut}) for name, model in real.items()}
    monkeypatch.setattr(checkpoints, "load_models", lambda: short)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "changes"),
    [
        ("h100", {}),
        (
            "a100",
            {
                "pair": "llama-3.1-8b",
                "prompt_tokens": [600],
                "top_p": 0.9,
                "verification": "block",
                "temperatures": [1.0],
            },
        ),
    ],
)
def test_every_kind_of_step_of_a_study_could_be_captured(gpu, changes, two_layers):
    """Baseline, every method and rule, greedy and sampled, with the pair's draft and with a head; and the sweep."""
    said = []
    found = rehearse(load_params(gpu, CUT | changes), said.append)
    assert found.faults == []
    assert len({need.draft for need in found.needs}) == 2
    assert "7 of 7 kinds of step" in said[1]  # the baseline, three methods, and each by the other rule
    for need in found.needs:
        assert need.peak_bytes > need.target_bytes + need.draft_bytes + need.cache_bytes


@pytest.mark.parametrize(
    "pair", ["gpt-oss-120b", *(pytest.param(each, marks=pytest.mark.slow) for each in ("qwen3-8b-fp8", "gemma-3-12b"))]
)
def test_steps_of_mixtures_and_of_windows_could_be_captured(pair):
    """Of four layers, greedy; the host reads nothing of which experts are chosen.

    The plan has the whole models, quantised as the checkpoint is.
    """
    one = CUT | {"pair": pair, "methods": ["draft"], "temperatures": [0]}
    (need,) = memory_plan.needs_of(load_params("h100", one), [(1, 16, 8)], 2)
    target, draft = (known_shape(name) for name in PRESETS[pair])
    assert need.target_bytes == pytest.approx(target.bytes_kept(2), rel=0.05)  # norms, and the tower that sees
    assert need.draft_bytes == pytest.approx(draft.bytes_kept(2), rel=0.01)


def test_a_pair_that_is_read_row_by_row_is_not_rehearsed():
    with pytest.raises(ValueError, match=r"qwen3.6-27b is read row by row: its steps are not captured.*measure it"):
        rehearse(load_params("h200", {"pair": "qwen3.6-27b"}))


def test_a_study_is_rehearsed_by_kinds_of_steps_and_every_setting_by_its_largest(two_layers):
    """At batch 1 and at the first larger one all methods; of settings with other sizes alone one cell."""
    axes = {"batch_sizes": [1, 4, 8], "prompt_tokens": [0, 256], "max_new_tokens": [32], "temperatures": [0, 1]}
    params = load_params("h100", axes | {"num_draft_tokens": [1, 2, 3, 4, 5]})
    with fake_gpu(params):
        kinds = [(str(setting), cells) for setting, cells in kinds_of_cells(params, short_pair(params)[0])]
    numbers = {
        setting.partition(",")[0] + setting.partition("batch")[2][:2]: len(cells) for setting, cells in kinds[:6]
    }
    assert numbers == {"T=0 1": 13, "T=1 1": 13, "T=0 4": 4, "T=1 4": 4, "T=0 8": 0, "T=1 8": 1}
    assert [len(cells) for _, cells in kinds[6:]] == [0, 1]  # the other prompt
    assert {cell.num_draft_tokens for cell in kinds[0][1]} == {None, 1, 4, 5}
    assert kinds[5][1][0].method == "composite"


def test_each_gpu_of_a_spread_target_holds_its_share(two_layers):
    params = load_params(
        "h100", CUT | {"tensor_parallel": 2, "methods": ["draft"], "prompt_tokens": [0], "temperatures": [0]}
    )
    assert share_of(config_of("qwen3-8b"), 2, "qwen3-8b").num_key_value_heads == 4
    assert rehearse(params, lambda line: None).faults == []
    with pytest.raises(ValueError, match="has 32 heads and 8 key/value heads: choose a number that divides both"):
        fake_pair(params.model_copy(update={"tensor_parallel": 3}))


class Faulty(NgramProposer):
    """Lookup with a fault in every proposal."""

    def __init__(self, fault):
        super().__init__()
        object.__setattr__(self, "fault", fault)

    def start(self, call):
        drafting = NgramDrafting(self, call.ops)
        propose, state = drafting.propose, {"count": 0, "kept": None}
        drafting.propose = lambda rows, gamma, uniforms: self.fault(state, *propose(rows, gamma, uniforms))
        return drafting


def on_the_host(state, tokens, probs):
    return tokens + torch.arange(tokens.shape[1]), probs


def moved_to_the_host(state, tokens, probs):
    return tokens.cpu().to(tokens.device), probs


def read_by_the_host(state, tokens, probs):
    return (tokens, probs) if bool(probs.any()) else (tokens, probs * 1)


def chosen_by_a_mask(state, tokens, probs):
    return tokens, probs + probs[probs > 0].sum()


def counted_in_python(state, tokens, probs):
    state["count"] += 1
    return tokens + state["count"], probs


def of_another_shape(state, tokens, probs):
    state["count"] += 1
    return tokens, probs + torch.zeros(state["count"], device=probs.device).sum()


def kept_from_the_step_before(state, tokens, probs):
    kept, state["kept"] = state["kept"], tokens
    return (tokens if kept is None else kept).clone(), probs


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (on_the_host, "arange.* works on the host within a step"),
        (moved_to_the_host, "reads a value on the host within a step"),
        (read_by_the_host, "reads a value on the host within a step.*test_rehearsal.py"),
        (chosen_by_a_mask, "makes a shape from values"),
        (counted_in_python, "a step is not the one before: .* had 1 in the first and 2 in the second"),
        (of_another_shape, "a step is not the one before"),
        (kept_from_the_step_before, "a step is not the one before: .*clone.* had .*made.* in the first"),
    ],
)
def test_what_a_captured_graph_could_not_replay_is_refused(fault, message, two_layers):
    params = load_params("h100", CUT)
    with fake_gpu(params), pytest.raises(FaultError, match=message):
        decode(fake_pair(params), Faulty(fault))


def decode(pair, proposer, batch=2, prompt=8, gamma=2, **options):
    prompts = [torch.arange(prompt)] * batch
    sampling, generator = SamplingConfig(1.0), torch.Generator().manual_seed(0)
    given = {"max_new_tokens": 6, "num_draft_tokens": gamma, "sampling": sampling, "generator": generator}
    return speculative_decode(pair.target, proposer, prompts, **given | options)


def test_a_sound_proposer_is_not_refused(two_layers):
    params = load_params("h100", CUT)
    with fake_gpu(params) as device:
        decode(fake_pair(params), Faulty(lambda state, *proposal: proposal))
        assert device.captures == 1


def test_a_tensor_on_the_wrong_device_is_refused_in_the_prefill_too(two_layers, monkeypatch):
    params = load_params("h100", CUT)
    with fake_gpu(params):
        pair = fake_pair(params)
        monkeypatch.setattr(
            pair.target.body.rotary_emb, "forward", lambda x, position_ids: (torch.ones(2, 8, 128),) * 2
        )
        with pytest.raises(RuntimeError, match="cpu"):
            decode(pair, NgramProposer())


def test_a_product_in_float32_is_refused_in_a_bfloat16_model(two_layers, monkeypatch):
    params = load_params("h100", CUT)
    with fake_gpu(params) as device:
        pair = fake_pair(params)
        device.precision = torch.bfloat16
        decode(pair, ModelProposer(pair.draft))
        down = pair.draft.model.model.layers[1].mlp.down_proj
        monkeypatch.setattr(down, "forward", lambda x: linear(x.float(), down.weight.float()).to(x.dtype))
        with pytest.raises(FaultError, match=r"multiplies in torch\.float32, and the models are in torch\.bfloat16"):
            decode(pair, ModelProposer(pair.draft))


def test_a_fault_is_a_line_of_the_verdict(two_layers, monkeypatch, capsys):
    monkeypatch.setattr(there, "REPORTS", 2)  # calls end before a step is captured
    few = "batch_sizes=[1] prompt_tokens=[0] max_new_tokens=[8] temperatures=[0] num_draft_tokens=[4] methods=[ngram]"
    assert cli.main(["gpu-rehearsal", "--gpu", "h100", "--set", few]) == 1
    said = capsys.readouterr().out
    assert "FaultError: no step was captured" in said
    assert "faults" in said.splitlines()[-1]


@pytest.mark.slow
def test_a_study_that_does_not_fit_names_the_batch_that_would():
    """A real size: 66 GB of weights, and 0.3 GB of keys and values for each 1,024 tokens of a row."""
    params = load_params(
        "h100",
        {
            "pair": "qwen3-32b",
            "prompt_tokens": [1024],
            "batch_sizes": [1, 64],
            "max_new_tokens": [128],
            "num_draft_tokens": [4],
        },
    )
    with pytest.raises(
        ValueError, match=r"batch 64 at 1,152 tokens needs .* of 80 GB of a H100.*lower batch_sizes to \d+,"
    ) as refused:
        check_memory(params)
    batch = int(str(refused.value).rpartition("lower batch_sizes to ")[2].split(",")[0])
    check_memory(params.model_copy(update={"batch_sizes": [batch]}))


def test_models_that_leave_no_room_for_a_row_are_refused_so(monkeypatch):
    need = Need("p", "d", "bfloat16", 1, 256, 4, 80 * 10**9, 10**9, 10**9, 83 * 10**9, 10**7)
    monkeypatch.setattr(memory_plan, "needs_of", lambda *_: [need, need])
    with pytest.raises(ValueError, match="choose a smaller pair or tensor_parallel: the models alone leave no room"):
        check_memory(load_params("h100"))


def test_a_study_of_no_gpu_is_refused_with_the_remedy(capsys):
    assert cli.main(["gpu-rehearsal", "--gpu", "cpu"]) == 2
    assert (
        "GPU=cpu is no study of a GPU (device cpu, price of a cpu): choose one such as GPU=h100"
        in capsys.readouterr().err
    )


def test_a_pair_without_a_known_configuration_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="knows no shapes for pair 'smollm2-135m-embedded': choose one of"):
        rehearse(load_params("h100", {"pair": "smollm2-135m-embedded"}))


ROWS = """
import json, sys, tempfile
from pathlib import Path
from specdec_lib.params_files import load_params
from specdec_lib.machine.environment import check_device, check_product, describe_environment, product_here
from specdec_lib.study.dry_run.fake_gpu import fake_gpu, fake_pair
from specdec_lib.study.run_folder import read_cell
from specdec_lib.study.runner import BlockRunner

params = load_params("a100", json.loads(sys.argv[1]))
with fake_gpu(params), tempfile.TemporaryDirectory() as folder:
    check_device(params)
    check_product(params, product_here("cuda"))
    environment = describe_environment(params)
    runner = BlockRunner(params, Path(folder), fake_pair(params))
    runner.run([0])
    rows = [row for cell in runner.blocks[0].cells for row in read_cell(Path(folder), cell.id)]
print(json.dumps([environment["cuda"], rows]))
"""


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_a_sweep_with_a_driver_writes_every_column_of_a_gpu(tmp_path):
    """The driver is the stub of test_telemetry.py; the least of two tiny models."""
    shape = config_of("smollm2-135m").to_dict() | {"num_hidden_layers": 1}
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(shape, default=str))
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", STUB], check=True)
    one = {"num_prompts": 1, "num_axis_prompts": 1, "repetitions": 1, "compare_transformers": False, "batch_sizes": [2]}
    pair = {"pair": "custom", "target": str(tmp_path / "target"), "draft": str(tmp_path / "draft")}
    few = CUT | one | pair | {"temperatures": [1.0], "methods": ["composite"], "prompt_tokens": [0]}
    places = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "STUB_NVML": "healthy", "PYTHONPATH": places}
    done = subprocess.run(
        [sys.executable, "-c", ROWS, json.dumps(few)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    cuda, rows = json.loads(done.stdout.splitlines()[-1])
    assert (cuda["product"], cuda["driver"]) == ("a100-sxm-80", "570.00.01")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    for row in rows:
        assert row["replayed"]
        assert row["throttled"] is False
        assert row["sm_clock_mhz"] == 1410
        assert row["foreign_processes"] == 0
        assert 0 < row["peak_memory_allocated_bytes"] < row["peak_memory_reserved_bytes"]


def measured_peak(run):
    """The most bytes that the CPU allocator gave out at a time while `run` ran, beyond those from before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
def test_the_plan_of_the_embedded_pair_is_within_ten_percent_of_what_a_cpu_allocates(batch, monkeypatch):
    """Caches, logits and activations; the plan from shapes alone, the measurement with the weights that are shipped."""
    monkeypatch.setattr(host_memory, "HUGE_PAGES", None)  # caches from the allocator that is watched
    here = load_pair("smollm2-135m-embedded", compiled=False)
    options = {"batch": batch, "prompt": 300, "gamma": 4, "ops": PlainOps(SamplingConfig(1.0))}
    measured = measured_peak(lambda: decode(here, ModelProposer(here.draft), **options))

    settings = json.loads((DRAFTS_FOLDER / "smollm2-135m-eagle" / "config.json").read_text())["settings"]
    params = load_params("h100")
    with fake_gpu(params) as device:
        model = random_model("smollm2-135m", config_of("smollm2-135m"), "cuda", "bfloat16", 0).model
        target = type(here.target)(model, "smollm2-135m", tuple(settings["feature_layers"]), compiled=False)
        head = ShippedHead.random(target, settings["num_scored"])
        torch.cuda.reset_peak_memory_stats()
        before = device.memory.allocated
        decode(type(here)("", target, head, None, "", "", {}), ModelProposer(head), **options)
    planned = device.memory.peak - before
    print(f"batch {batch}: measured {measured / 1e6:.1f} MB, planned {planned / 1e6:.1f} MB")
    assert planned == pytest.approx(measured, rel=0.1)


def test_products_are_named_with_their_memory():
    need = Need("p", "d", "bfloat16", 32, 4096, 4, 40 * 10**9, 10**9, 10**10, 58 * 10**9, 17 * 10**8)
    assert need.of(load_gpus()["h100-sxm"]) == "61.2 of 80 GB"
    assert need.fits(load_gpus()["h100-sxm"])
    assert not need.fits(load_gpus()["a100-sxm-40"])
