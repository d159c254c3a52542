"""The certificate of exactness as data: what was tried to tell the output's distribution from the target's.

    enumeration   the exact law of toys, and of a tiny Llama on each engine, from every path of the decoding code
    joint law     samples of toys and of the study's pair against the target's law
    mutants       samplers with one bug each, all of which must be rejected
    greedy        greedy output against the baseline's, in float32 and in the study's dtype
    subjects      other people's samplers: reported, never a failure

`certify` measures it. This module reads and writes it, and imports nothing that measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from specdec_lib.config import BENCHMARK_VERSION, StudyParams
from specdec_lib.machine.files import write_atomically
from specdec_lib.methods import FIXED_LENGTH, label

FILE = "exactness.json"
TABLES = ("enumeration", "tests", "cells", "mutants", "greedy", "divergences", "subjects")
PAIR_KEYS = ("device", "pair", "target", "target_revision", "draft", "draft_revision", "weights", "dtype")
DECISIVE = (
    *(*PAIR_KEYS, "methods", "verification", "draft_length", "plugins", "prompt_set", "turns"),
    *("correctness_samples", "seed"),
)
LATER = {"turns": "first", "draft_length": [FIXED_LENGTH]}  # keys that old certificates lack, and what they meant

SOUND = "sound"  # the sampler without a bug among the mutants
FALSE_ALARM = 1e-6  # the chance that any test of a battery rejects a sound sampler
POWER = 0.999  # the chance that a bias of the size stated is detected
WIDTH = 4  # tokens that a law follows by name at each position; the others are told apart by their group
GROUPS = 16  # of those others; see `target_law`


@dataclass(frozen=True)
class Certificate:
    """The tables of all levels. One that an old run did not keep is empty."""

    enumeration: pd.DataFrame  # a line per method, pair, engine and setting; see `adversaries.enumeration_line`
    tests: pd.DataFrame  # a line per setting and position; see `joint_law.decide`
    cells: pd.DataFrame  # observed and expected count of each cell of each test and prompt
    mutants: pd.DataFrame  # see `mutant_battery.mutant_table`
    greedy: pd.DataFrame  # these two: see `greedy.greedy_agreement`
    divergences: pd.DataFrame
    subjects: pd.DataFrame  # like `tests`
    environment: Mapping[str, Any] = field(default_factory=dict)  # as in environment.json
    kept_failures: tuple[str, ...] | None = None  # those that were written when it was measured

    def failures(self) -> list[str]:
        """One line for each thing that an exact implementation would not do.

        Of a certificate that was read these are the lines written with it: earlier versions rounded their tables.
        """
        if self.kept_failures is not None:
            return list(self.kept_failures)
        lines = [
            f"enumeration: {line.pair} ({line.path}), gamma {line.num_draft_tokens} is off"
            for line in self.enumeration.itertuples()
            if line.largest_error > line.tolerance or line.unexplained > 0
        ]
        lines += [
            f"joint law: {line.sampler} at position {line.position} is biased"
            for line in self.tests.itertuples()
            if line.rejected
        ]
        lines += [
            f"mutants: wrong verdict on {line.mutant}"
            for line in self.mutants.itertuples()
            if line.rejected == (line.mutant == SOUND)
        ]
        lines += [
            f"greedy: {line.method}, gamma {line.num_draft_tokens} differs in float32"
            for line in self.greedy.itertuples()
            if line.dtype == "float32" and line.equal_rows < line.rows
        ]
        lines += [
            f"greedy: {line.method}, gamma {line.num_draft_tokens}, row {line.row} differs by more than rounding"
            for line in self.divergences.itertuples()
            if not line.explained
        ]
        return lines

    def sentence(self) -> str:
        """What was shown, in one sentence per pair: the least powerful position of each pair's first setting.

        The bias is one of the law that was tested, not of whole texts: see `joint_law`.
        """
        if self.tests.empty:
            return "No sampled output was tested."
        parts = []
        for sampler in dict.fromkeys(self.tests.groupby("pair", sort=False)["sampler"].first()):
            lines = self.tests[self.tests["sampler"] == sampler]
            first = lines.iloc[0]
            found = "one was" if lines["rejected"].any() else "none was"
            parts.append(
                f"{first['pair']}, {label(first['method'])}, at temperature {first['temperature']:g}, "
                f"top-p {first['top_p']:g}, gamma {first['num_draft_tokens']}, batch {first['batch_size']}: a "
                f"total-variation bias in the law of pairs over the {WIDTH} most likely tokens and {GROUPS} groups of "
                f"the others above {lines['detectable_bias'].max():.2g} would have been detected with probability "
                f"{POWER:g}; {found}. Up to {lines['pooled'].max():.0%} of the mass was seen only in sums."
            )
        ways = [f"{what} through {' and '.join(f'({p})' for p in paths)}" for what, paths in self.paths().items()]
        return " ".join([*reversed(parts), f"Certified are texts {'; '.join(ways)}."])

    def paths(self) -> dict[str, list[str]]:
        """By what was done: the ways through the engine that were certified (see `environment.path_of`)."""
        tables = {"enumerated": self.enumeration, "sampled": self.tests, "greedy": self.greedy}
        return {what: list(table["path"].unique()) for what, table in tables.items() if len(table)}

    def serves(self, params: StudyParams) -> bool:
        """Whether it is whole, passes, and was measured for these params by this version of the benchmark."""
        kept, asked = LATER | (self.environment.get("params") or {}), params.model_dump(mode="json")
        whole = not any(getattr(self, name).empty for name in TABLES if name != "divergences")
        if isinstance(kept.get("verification"), str):  # an old certificate has one rule, not a list
            kept |= {"verification": [kept["verification"]]}
        same = all(kept.get(key) == asked.get(key) for key in DECISIVE)
        return whole and same and self.environment["benchmark_version"] == BENCHMARK_VERSION and not self.failures()


def certify_or_read(params: StudyParams, folder: Path | str) -> Certificate:
    """The certificate in `folder` if it serves these params; else it is measured and written there."""
    certificate = read_certificate(folder)
    if certificate is None or not certificate.serves(params):
        from specdec_lib.exactness.certify import certify

        certificate = certify(params, folder)
    return certificate


def read_certificate(folder: Path | str) -> Certificate | None:
    """The certificate in `folder`; None where there is none."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    tables = {name: pd.DataFrame(kept.get(name)) for name in TABLES}
    return Certificate(**tables, environment=kept.get("environment", {}), kept_failures=tuple(kept.get("failures", ())))


def write_certificate(certificate: Certificate, folder: Path | str) -> None:
    """Write `folder/exactness.json`, whole or not at all: each table as a list of values per column."""
    failures = certificate.failures()
    record = {"sentence": certificate.sentence(), "passed": not failures, "failures": failures}
    record |= {"false_alarm": FALSE_ALARM, "power": POWER, "environment": certificate.environment}
    for name in TABLES:
        table = getattr(certificate, name)
        record[name] = {column: [_plain(value) for value in table[column].tolist()] for column in table}
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, separators=(",", ":")) + "\n")


def _plain(value: object) -> object:
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value
