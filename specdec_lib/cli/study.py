"""The commands: of a study, from its params to its published pages, and of the shipped drafts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from specdec_lib.cli.commands import (
    OUTPUTS,
    PARAMS,
    RUN,
    STUDY,
    Options,
    check_study,
    command,
    folder,
    option,
    run_folder,
    study_name,
    study_params,
)
from specdec_lib.config import StudyParams
from specdec_lib.params_files import RUN_FACTS, finished_run


@command(
    *STUDY,
    option(
        "--cluster",
        metavar="ADDRESS",
        help="spread the sweep over the devices of this Ray cluster; auto: the one that this machine belongs to",
    ),
    example='--gpu cpu --set "batch_sizes=[1,8]"',
)
def run(options: Options) -> int:
    """Run a whole study and write its HTML report.

    Executes the notebooks with the params of one GPU. Table, reports and index go to <outputs>/<NAME>. Finished cells
    are kept: the same command goes on where it stopped.
    """
    if folder_of_run := finished_run(options.gpu):
        raise ValueError(
            f"{folder_of_run} is the folder of a run, and run measures a study: give the name or the file of its "
            "params, or make report GPU=<folder> to render it"
        )
    params = study_params(options)
    check_study(params)
    from specdec_lib.report.captions.verdict import in_short
    from specdec_lib.report.pages import make_reports
    from specdec_lib.study.rows.table import read_results

    if options.cluster:
        os.environ["SPECDEC_CLUSTER"] = options.cluster  # the sweep runs in a notebook's kernel
    print(f"study {params.gpu}: pair {params.pair}, {params.dtype}, on {params.device}", flush=True)
    try:
        index = make_reports(params, options.outputs)
    finally:
        failed = _failed_cells(options.outputs / params.gpu)
        for line in failed:
            print(f"failed cell: {line}", file=sys.stderr)
    print(in_short(read_results(options.outputs / params.gpu), params))
    print(f"report: {index.resolve()}")
    return 1 if failed else 0


def _failed_cells(folder: Path) -> list[str]:
    """One line for each cell that failed."""
    from specdec_lib.study.rows.table import read_results

    if not (folder / "results.parquet").exists():
        return []
    rows = read_results(folder)
    cells = rows[rows["status"] == "failed"].drop_duplicates("cell_id").itertuples()
    return [f"{cell.cell_id} {cell.engine} {cell.method} batch {cell.batch_size}: {cell.error}" for cell in cells]


@command(*PARAMS, example='--gpu h100 --set "batch_sizes=[1,8] temperatures=[0]"')
def params(options: Options) -> int:
    """Print all keys of a study's params, explained.

    The output is a YAML file that holds every key with its meaning. Keys that differ from the default are marked.
    """
    print(explained(study_params(options)))
    return 0


def explained(params: StudyParams) -> str:
    """A YAML file that holds every key with its meaning; as a params file it gives the same study."""
    lines = [f"# All keys of {params.gpu}. A line with <- differs from the default."]
    for key, field in StudyParams.model_fields.items():
        value = getattr(params, key)
        same = field.is_required() or value == field.default
        lines += [
            f"# {field.description}",
            f"{key}: {_yaml(value)}{'' if same else f'  # <- default: {_yaml(field.default)}'}",
        ]
    return "\n".join(lines)


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()


@command(*STUDY, option("--thorough", action="store_true", help="ten times the samples and more: hours, not minutes"))
def certify(options: Options) -> int:
    """Write the certificate of exactness; fail if anything is not exact.

    Runs the exactness tests of a study alone and writes <outputs>/<NAME>/exactness.json.
    """
    params = study_params(options)
    check_study(params)
    from specdec_lib.exactness.certificate import FILE
    from specdec_lib.exactness.certify import certify

    folder = options.outputs / params.gpu
    certificate = certify(params, folder, options.thorough)
    print(certificate.sentence())
    failures = certificate.failures()
    for failure in failures:
        print(f"not exact: {failure}")
    print(f"certificate: {(folder / FILE).resolve()}")
    return 1 if failures else 0


@command(*STUDY, example="--gpu cpu")
def advise(options: Options) -> int:
    """Say what to set: method, gamma, and on or off, with the expected speedup.

    Reads the profile of a run, or measures one first, in minutes and without a sweep: the costs of the pieces of a
    step, and the expected acceptance on a few prompts. One line for each temperature, kind of text, batch size and
    context.
    """
    params = study_params(options)
    folder = finished_run(options.gpu) or options.outputs / params.gpu
    if not (folder / RUN_FACTS).is_file():  # a run is read, and not measured over
        check_study(params)
        from specdec_lib.study.profile import make_profile

        make_profile(params, folder)
    from specdec_lib.analysis.advice import advice_of_run
    from specdec_lib.report.captions.advice import finding_advice
    from specdec_lib.report.tables.advice import advice_table

    advised = advice_of_run(params, folder)
    print(advice_table(advised).to_string(index=False))
    print(finding_advice(advised))
    return 0


@command(*PARAMS)
def gpu_check(options: Options) -> int:
    """Check this machine in about a minute: device, exactness, a short sweep, telemetry.

    Prints a verdict for every item that a study on a CUDA machine depends on.
    """
    from specdec_lib.cli.gpu_check import FAIL, check_machine

    failed = []
    for verdict in check_machine(study_params(options)):
        print(f"{verdict.outcome:8s} {verdict.item} ({verdict.seconds:.0f} s): {verdict.detail}", flush=True)
        failed += [verdict.item] * (verdict.outcome == FAIL)
    print(f"verdict: {'not ready: ' + ', '.join(failed) if failed else 'ready for make run GPU=' + options.gpu}")
    return 1 if failed else 0


@command(*RUN)
def report(options: Options) -> int:
    """Render the HTML report again from what is on disk.

    Renders reports, index and the overview of all runs. Nothing is measured, so the folder of a run may be a copy.
    """
    folder = run_folder(options)
    from specdec_lib.report.pages import render_reports

    print(f"report: {render_reports(folder).resolve()}")
    return 0


@command(*RUN)
def publish(options: Options) -> int:
    """Keep a run under outputs/published and in the README's headline.

    Copies the run's data, renders its pages there and writes the headline numbers into README.md. A run with failed
    cells is refused.
    """
    folder = run_folder(options)
    from specdec_lib.params_files import load_params
    from specdec_lib.report.publish import publish

    params = load_params(folder)
    print(f"published: {publish(params, folder, options.outputs / 'published' / params.gpu).resolve()}")
    return 0


@command(
    option("--gpu", nargs="*", default=[], metavar="NAME_OR_PATH", help="only these studies (default: all)"),
    OUTPUTS,
    example="--gpu cpu h100",
)
def compare(options: Options) -> int:
    """Compare all finished runs, with predictions for GPUs without one.

    Executes and renders the comparison notebook over every run below <outputs>. Nothing is measured.
    """
    from specdec_lib.analysis.comparison import find_runs
    from specdec_lib.report.pages import make_comparison

    names = [study_name(given) for given in options.gpu]
    find_runs(options.outputs, names)  # refuses runs that must not be mixed, before anything is executed
    print(f"report: {make_comparison(options.outputs, names)}")
    return 0


@command(
    option("cell_id", metavar="CELL_ID", help="of a row of results.parquet"),
    *RUN,
    example="0123456789abcdef --gpu cpu",
)
def rerun(options: Options) -> int:
    """Decode one cell of a finished run again and compare its tokens.

    Says in one line whether the tokens are the same. Nothing is measured or written. Exit code 1 if they differ.
    """
    from specdec_lib.study.rerun import rerun

    found = rerun(run_folder(options), options.cell_id)
    print(found.sentence())
    return 1 if found.different else 0


@command(folder("--workdir", Path("outputs/draft"), "where corpus and drafts go, several GB"))
def draft(options: Options) -> int:
    """Distil the shipped drafts from nothing, in a few hours on 2 cores.

    The embedded target writes a corpus, and both drafts are trained on it. An interrupted run goes on where it stopped.
    """
    import logging

    from specdec_lib.distill.make import FEATURE_LAYERS, make_drafts
    from specdec_lib.models.pair import load_embedded_target

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make_drafts(options.workdir, *load_embedded_target(feature_layers=FEATURE_LAYERS))
    return 0
