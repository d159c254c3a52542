"""What each command of the command line does, given its options; returns the exit code. Imports what it needs alone."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from specdec_lib.config import StudyParams, load_params, parse_overrides


def study_params(options: argparse.Namespace) -> StudyParams:
    """The params that `--gpu` and `--set` ask for."""
    return load_params(options.gpu, parse_overrides(" ".join(options.set)))


def run(options: argparse.Namespace) -> int:
    """Run a study from its params to its report."""
    params = study_params(options)
    check_study(params)
    from specdec_lib.report.pages import make_reports

    if options.cluster:
        os.environ["SPECDEC_CLUSTER"] = options.cluster  # the sweep runs in a notebook's kernel
    print(f"study {params.gpu}: pair {params.pair}, {params.dtype}, on {params.device}", flush=True)
    folder = options.outputs / params.gpu
    try:
        index = make_reports(params, options.outputs)
    finally:
        failed = _failed_cells(folder)
        for line in failed:
            print(f"failed cell: {line}", file=sys.stderr)
    print(f"report: {index.resolve()}")
    return 1 if failed else 0


def check_study(params: StudyParams) -> None:
    """Refuse a study that cannot run here, before anything is loaded.

    Raises:
        ValueError: wrong device, unknown prompt set or price, a pair that cannot work, or prompts that do not fit it;
            names the remedy.
    """
    from specdec_lib.hardware.catalog import price
    from specdec_lib.machine.environment import check_device, check_product, product_here
    from specdec_lib.models.pair import check_study_pair
    from specdec_lib.study.prompts import check_prompts, load_prompts

    check_device(params)
    price(params.price)
    check_product(params, product_here(params.device))
    load_prompts(params.prompt_set)
    if read := check_study_pair(params):
        check_prompts(params, *read)


def _check_one_process(params: StudyParams, command: str) -> None:
    """Refuse a command that its own process carries out.

    Raises:
        ValueError: the target is spread over several.
    """
    if params.tensor_parallel > 1:
        raise ValueError(
            f"{command} loads the whole target in one process, and tensor_parallel is {params.tensor_parallel}: "
            "give params with tensor_parallel: 1, on a machine where that fits"
        )


def _failed_cells(folder: Path) -> list[str]:
    from specdec_lib.study.table import read_results

    if not (folder / "results.parquet").exists():
        return []
    rows = read_results(folder)
    lines = rows[rows["status"] == "failed"].drop_duplicates("cell_id")
    return [
        f"{line.cell_id} {line.engine} {line.method} batch {line.batch_size}: {line.error}"
        for line in lines.itertuples()
    ]


def params(options: argparse.Namespace) -> int:
    """Print the params of a study, resolved."""
    from specdec_lib.cli.params import explained

    print(explained(study_params(options)))
    return 0


def report(options: argparse.Namespace) -> int:
    """Render a run's pages again."""
    from specdec_lib.report.pages import render_reports, write_index

    params = study_params(options)
    folder = options.outputs / params.gpu
    render_reports(folder)
    print(f"report: {write_index(params, folder).resolve()}")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Set all runs side by side."""
    from specdec_lib.analysis.comparison import find_runs
    from specdec_lib.report.pages import make_comparison

    find_runs(options.outputs, options.gpu)  # refuses what must not be mixed, before anything is executed
    print(f"report: {make_comparison(options.outputs, options.gpu)}")
    return 0


def bench_peers(options: argparse.Namespace) -> int:
    """Time other engines beside ours."""
    params = study_params(options)
    _check_one_process(params, "bench-peers")
    from specdec_lib.study.prompts import load_prompts

    number = options.prompts or len(load_prompts(params.prompt_set))
    timed = {"batch_sizes": [1], "prompt_tokens": [0], "num_prompts": number, "max_new_tokens": [options.new_tokens]}
    check_study(params.model_copy(update=timed))
    from specdec_lib.peers.lines import peer_lines, write_peer_lines
    from specdec_lib.peers.run import run_peers
    from specdec_lib.report.pages import make_peers

    folder = options.outputs / params.gpu
    rows = run_peers(
        params,
        folder,
        num_prompts=options.prompts,
        new_tokens=options.new_tokens,
        repetitions=options.repetitions,
        gammas=options.gammas,
    )
    write_peer_lines(folder, peer_lines(rows, params.seed))
    print(f"report: {make_peers(params, folder)}")
    return 1 if (rows["status"] == "failed").any() else 0


def peers(options: argparse.Namespace) -> int:
    """Install the other engines."""
    from specdec_lib.peers.install import install_peers

    outcomes = install_peers()
    for engine, outcome in outcomes.items():
        print(f"{engine}: {outcome}")
    return 1 if any(outcome.startswith("failed") for outcome in outcomes.values()) else 0


def gpu_check(options: argparse.Namespace) -> int:
    """Check a machine, an item a line."""
    from specdec_lib.cli.gpu_check import FAIL, gpu_check

    failed = []
    for verdict in gpu_check(study_params(options)):
        print(f"{verdict.outcome:8s} {verdict.item} ({verdict.seconds:.0f} s): {verdict.detail}", flush=True)
        failed += [verdict.item] * (verdict.outcome == FAIL)
    print(f"verdict: {'not ready: ' + ', '.join(failed) if failed else 'ready for make run GPU=' + options.gpu}")
    return 1 if failed else 0


def publish(options: argparse.Namespace) -> int:
    """Keep a run."""
    from specdec_lib.report.publish import publish

    params = study_params(options)
    published = publish(params, options.outputs / params.gpu, options.outputs / "published" / params.gpu)
    print(f"published: {published.resolve()}")
    return 0


def certify(options: argparse.Namespace) -> int:
    """Write the certificate of exactness alone."""
    import logging

    from specdec_lib.exactness import certificate as exactness
    from specdec_lib.report.captions import exactness as captions
    from specdec_lib.report.tables import exactness as exactness_tables

    params = study_params(options)
    _check_one_process(params, "certify")
    check_study(params)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = options.outputs / params.gpu
    certificate = exactness.certify(params, folder, options.thorough)
    print(exactness_tables.mutant_table(certificate.mutants).to_string(index=False))
    print(exactness_tables.law_table(certificate.tests).to_string(index=False))
    print(exactness_tables.subject_table(certificate.subjects).to_string(index=False))
    print(captions.finding_greedy(certificate.greedy, certificate.divergences))
    print(certificate.sentence())
    print(captions.finding_verdict(certificate))
    print(f"certificate: {(folder / exactness.FILE).resolve()}")
    return 1 if certificate.failures() else 0


def rerun(options: argparse.Namespace) -> int:
    """Decode a cell again."""
    from specdec_lib.study.rerun import find_run, rerun

    folder = options.outputs / Path(options.gpu).stem if options.gpu else find_run(options.outputs, options.cell_id)
    found = rerun(folder, options.cell_id, alone=options.alone)
    print(found.sentence())
    return 1 if found.different else 0


def draft(options: argparse.Namespace) -> int:
    """Distil the shipped draft."""
    import logging

    from specdec_lib.distill import make_draft
    from specdec_lib.distill.make import FEATURE_LAYERS
    from specdec_lib.models.pair import load_embedded_target

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make_draft(options.workdir, *load_embedded_target(feature_layers=FEATURE_LAYERS))
    return 0


def draft_export(options: argparse.Namespace) -> int:
    """Write the plain draft as a checkpoint."""
    from specdec_lib.models.pair import DRAFTS_FOLDER, EMBEDDED_DRAFTS, load_embedded_target
    from specdec_lib.models.plain_draft import export_plain_draft

    target, tokenizer = load_embedded_target()
    export_plain_draft(DRAFTS_FOLDER / EMBEDDED_DRAFTS["smollm2-135m-embedded-plain"], options.folder, target)
    tokenizer.save_pretrained(options.folder)
    print(f"checkpoint: {options.folder.resolve()}")
    return 0


def audit(options: argparse.Namespace) -> int:
    """Look up the pins."""
    from specdec_lib.cli.audit import known_vulnerabilities

    found = known_vulnerabilities(options.pip_audit)
    print("\n".join(found) or "no known vulnerability in the pinned dependencies")
    return 1 if found else 0
