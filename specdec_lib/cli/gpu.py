"""The commands for a GPU that is not here yet, and for the first minutes on one."""

from __future__ import annotations

import time
from pathlib import Path

from specdec_lib.cli.commands import PARAMS, STUDY, Options, command, folder, option, study_params


@command(
    *PARAMS,
    option("--presets", action="store_true", help="rehearse nothing: print what is predicted for every preset pair"),
    option(
        "--write-plan",
        action="store_true",
        help="also count all known models: hardware/memory.csv, hardware/costs.csv",
    ),
    example="--gpu h100",
)
def gpu_rehearsal(options: Options) -> int:
    """Rehearse a GPU study without a GPU: every kind of step at its real size, and the memory that it takes.

    Tensors have shapes, types and places, and no contents, so that nothing is downloaded or computed. Fails on what a
    captured graph could not replay. Steps that differ in sizes alone are of one kind. Takes minutes.
    """
    params = study_params(options)
    from specdec_lib.hardware.catalog import load_gpus
    from specdec_lib.study.dry_run.fake_gpu import product_of
    from specdec_lib.study.dry_run.memory_plan import write_plan
    from specdec_lib.study.dry_run.pass_costs import write_costs
    from specdec_lib.study.dry_run.rehearsal import rehearse

    gpu, started = load_gpus()[product_of(params)], time.monotonic()
    if options.presets:
        from specdec_lib.analysis.presets import preset_lines, preset_table

        print("\n".join(preset_lines(preset_table(params), gpu.product)))
        return 0
    found = rehearse(params)
    most = {}
    for need in sorted(found.needs, key=lambda need: need.needed_bytes):
        most[need.draft, need.tokens, need.batch_size] = need
    for _, need in sorted(most.items()):
        print(f"{need.draft}: batch {need.batch_size} at {need.tokens:,} tokens: {need.of(gpu)}")
    too_large = sum(not need.fits(gpu) for need in most.values())
    if options.write_plan:
        print(f"memory of all pairs: {write_plan()}")
        print(f"operations, bytes and kernels of all models: {write_costs()}")
    found.faults.extend(_compile_kernels())
    verdict = f"{len(found.faults)} faults" if found.faults else "no fault"
    fits = f"{too_large} of {len(most)} sizes do not fit" if too_large else "all sizes fit"
    print(f"verdict: {verdict}; {fits} a {gpu.product} ({time.monotonic() - started:.0f} s)")
    return 1 if found.faults or too_large else 0


def _compile_kernels() -> list[str]:
    """Compile the Triton kernels for the GPUs of the study and print how they come out; returns what failed."""
    try:
        from specdec_lib.kernels.gpu.compiled import CAPABILITIES, summary
    except ImportError as error:
        print(f"kernels: not compiled, {error}; make gpu-rehearsal makes an environment with Triton")
        return []
    faults = []
    for capability, products in CAPABILITIES.items():
        try:
            print(*(f"{products}: {line}" for line in summary(capability)), sep="\n")
        except Exception as error:  # noqa: BLE001 - a finding
            faults.append(f"a Triton kernel for {products}: {type(error).__name__}: {' '.join(str(error).split())}")
            print(f"fault: {faults[-1]}")
    return faults


@command(
    *STUDY,
    option("--minutes", type=float, metavar="N", default=12, help="stop measuring after so long (default: 12)"),
    option("--pair", default="qwen3-8b", help="whose shapes to take (default: qwen3-8b); on a CPU tiny ones"),
    option("--render", type=Path, metavar="FILE", help="measure nothing: write the page of this file next to it"),
    example="--gpu h200 --minutes 12",
)
def gpu_first(options: Options) -> int:
    """Measure what is worth most in the first minutes on a GPU, and write one file to take home and its page.

    Weights are random, so nothing is fetched. Each measurement is on disk at once.
    """
    path = options.render
    if path is None:
        params = study_params(options)
        from specdec_lib.cli.gpu_first import FILE, first_params, measure_first
        from specdec_lib.machine.environment import check_device

        if options.minutes <= 0:
            raise ValueError(f"--minutes is {options.minutes:g}: give a time above 0")
        where = (options.outputs / f"{params.gpu}-first").resolve()
        where.mkdir(parents=True, exist_ok=True)
        params, path = first_params(params, where, options.pair), where / FILE
        check_device(params)
        for line in measure_first(params, path, options.minutes):
            print(line, flush=True)
        print(f"file to take home: {path}")
    try:
        from specdec_lib.report.first_page import first_page
    except ImportError as error:
        print(
            f"no page here ({error}): at home, python -m specdec_lib gpu-first --gpu {options.gpu} --render {path.name}"
        )
        return 0
    page = path.with_suffix(".html")
    page.write_text(first_page(path), encoding="utf-8")
    print(f"page: {page.resolve()}")
    return 0


@command(folder("--to", Path("outputs/gpu-bundle"), "where the code and the wheels go"), example="--to /tmp/bundle")
def gpu_bundle(options: Options) -> int:
    """Pack what gpu-first needs for a machine without a package index: the code, and wheels that images lack.

    A folder of less than 64 MB, for Python 3.12 on Linux. There: PYTHONPATH=<folder>/packages:<folder> python -m
    specdec_lib gpu-first --gpu h200.
    """
    from specdec_lib.cli.bundle import pack

    print(pack(options.to))
    return 0
