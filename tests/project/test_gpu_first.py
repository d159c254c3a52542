"""The first minutes on a GPU, rehearsed on a CPU where only the packages of a typical image and of the bundle are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from specdec_lib import __main__ as cli
from specdec_lib.cli import bundle, gpu_first
from specdec_lib.params_files import load_params
from specdec_lib.report.first_page import first_page

ROOT = Path(__file__).resolve().parents[2]
LACKING = (  # that a typical image lacks, and that the bundle does not bring
    *(
        "papermill",
        "nbconvert",
        "nbformat",
        "ipykernel",
        "IPython",
        "jupyterlab",
        "matplotlib",
        "seaborn",
        "statsmodels",
    ),
    *("mistune", "nh3", "latex2mathml", "jupyterlab_pygments", "gguf", "accelerate", "ray", "hypothesis", "pytest"),
)
RUN = f"""
import sys
sys.modules.update(dict.fromkeys({LACKING!r}))  # to import one is an ImportError
from specdec_lib.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The file that gpu-first leaves for a GPU study with device=cpu, and what it said."""
    outputs = tmp_path_factory.mktemp("outputs")
    asked = ["gpu-first", "--gpu", "h200", "--set", "device=cpu", "--minutes", "3", "--outputs", str(outputs)]
    places = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", RUN, *asked],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return outputs / "h200-first" / gpu_first.FILE, done.stdout


@pytest.mark.slow
def test_measuring_needs_no_more_than_an_image_and_the_bundle_hold(measured):
    path, said = measured
    assert "no page here (" in said
    assert "--render first.jsonl" in said
    assert "failed" not in said
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["item"] for line in lines} == set(gpu_first.ITEMS)
    rows = [line["row"] for line in lines if "row" in line]
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["batch_size"] for row in rows} == {1, 2}
    steps = [line for line in lines if line["item"] == "steps"]
    assert {line["num_tokens"] for line in steps if line["model"] == "target"} >= {1, 2, 3, 5, 9, 16}


@pytest.mark.slow
def test_its_page_renders_from_the_file_alone(measured, capsys):
    path, _ = measured
    assert cli.main(["gpu-first", "--gpu", "h200", "--render", str(path)]) == 0
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert str(path.with_suffix(".html")) in capsys.readouterr().out
    for heading in ("Checks", "Bandwidth and matrix rate", "The pieces of a step", "Whole calls"):
        assert f">{heading}</h2>" in page


def test_what_takes_too_long_is_cut_off_and_what_was_measured_stays(tmp_path, monkeypatch):
    def slow(first):
        yield {"value": 1}
        while True:
            pass

    monkeypatch.setattr(gpu_first, "ITEMS", {"slow": slow, "after": slow})
    path = tmp_path / "first.jsonl"
    said = list(gpu_first.measure_first(load_params("smoke"), path, 0.3 / 60))
    assert said[0].startswith("slow: cut off after 1 lines, the time is up")
    assert said[1] == "after: not begun, the time is up"
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["value"], second["error"]) == (1, "the time was up")


def test_an_item_that_fails_is_a_line_and_the_next_one_runs(tmp_path, monkeypatch):
    def broken(first):
        raise RuntimeError("no kernel\nfor this device")
        yield

    monkeypatch.setattr(gpu_first, "ITEMS", {"broken": broken, "machine": gpu_first._machine})
    path = tmp_path / "first.jsonl"
    said = list(gpu_first.measure_first(load_params("smoke"), path, 1))
    assert "RuntimeError: no kernel for this device" in said[0]
    assert "What failed" in first_page(path)


def measured_on_a_gpu(path):
    """What a session on an H200 would leave, in short."""
    cuda = {"product": "h200-sxm", "driver": "570.00.01", "memory_bytes": 141 * 10**9}
    params = load_params("h200").model_dump()
    step = {"batch_size": 1, "context_tokens": 256, "temperature": 0.0, "draft": "model"}
    pieces = [("target", 1, 5.0), ("target", 5, 5.5), ("draft", 4, 6.0), ("sampling", 5, 0.2)]
    row = {"batch_size": 1, "status": "ok", "tokens_per_second": 150.0, "peak_memory_allocated_bytes": 18_500_000_000}
    lines = [
        {"item": "machine", "environment": {"device_name": "NVIDIA H200", "cuda": cuda, "params": params}},
        {"item": "rates", "rate": "copy, bytes/s", "value": 4.32e12, "median": 4.3e12},
        {"item": "load", "pair": "qwen3-8b (random weights)"},
        *({"item": "steps", "model": model, "num_tokens": m, "ms": ms, **step} for model, m, ms in pieces),
        {"item": "head", **step, "draft": "head", "model": "draft", "num_tokens": 4, "ms": 1.0},
        {"item": "sweep", "row": row | {"method": "autoregressive", "tpot_ms": 5.2}},
        {"item": "sweep", "row": row | {"method": "draft", "tpot_ms": 4.0}},
        {"item": "memory", "need": {"batch_size": 1, "peak_bytes": 18_000_000_000}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_page_sets_measurements_next_to_data_sheet_prediction_and_plan(tmp_path):
    page = first_page(measured_on_a_gpu(tmp_path / "first.jsonl"))
    for text in ("4.32", "90%", "measured / predicted", "1.10", "1.30", "measured / planned", "1.03"):
        assert text in page


def test_a_file_without_a_machine_is_refused(tmp_path):
    path = tmp_path / "first.jsonl"
    with pytest.raises(ValueError, match=r"is missing: make one with make gpu-first GPU=<name>"):
        first_page(path)
    path.write_text('{"item": "rates"}\n')
    with pytest.raises(ValueError, match="does not say on which machine"):
        first_page(path)


def test_the_bundle_holds_the_code_and_the_pins_of_its_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "install", lambda folder, platform: folder.mkdir())
    said = bundle.pack(tmp_path / "bundle")
    assert "PYTHONPATH=bundle/packages:bundle python -m specdec_lib gpu-first" in said
    assert (tmp_path / "bundle" / "specdec_lib" / "cli" / "gpu_first.py").is_file()
    assert not (tmp_path / "bundle" / "specdec_lib" / "drafts").exists()
    pins = bundle.pins((ROOT / "requirements.txt").read_text())
    assert [line.partition("==")[0] for line in pins.splitlines() if "==" in line.split(" ")[0]] == list(
        bundle.PACKAGES
    )
    with pytest.raises(ValueError, match="holds something: name an empty or new folder"):
        bundle.pack(tmp_path / "bundle")
