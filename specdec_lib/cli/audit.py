"""Whether a pinned dependency has a known vulnerability; no answer is never taken for a good one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINS = (
    "requirements.txt",
    "requirements/torch-cuda.txt",
    "requirements/cluster.txt",
)  # the CPU's torch is the same code


def known_vulnerabilities(pip_audit: Path, pins: tuple[str, ...] = PINS) -> list[str]:
    """One line for each known vulnerability of what the files `pins` name.

    Args:
        pip_audit: the program, which `make audit` installs in an environment of its own.

    Raises:
        ValueError: a dependency could not be looked up, so that nothing is known; with the reason.
    """
    files = [option for name in pins for option in ("--requirement", str(ROOT / name))]
    strict = ["--strict", "--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run([str(pip_audit), *strict, *files], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{pip_audit} cannot be run ({error.strerror}): run make audit, which installs it") from None
    try:
        answers = json.loads(done.stdout)["dependencies"]
        silent = [answer["skip_reason"] for answer in answers if "skip_reason" in answer]
    except (ValueError, KeyError):
        answers, silent = [], (done.stderr.strip().splitlines() or ["pip-audit gave no reason"])[-1:]
    if silent:
        reason = silent[0].removeprefix("ERROR:pip_audit._cli:")
        raise ValueError(
            f"nothing was audited ({reason}): the audit needs the network, with a package index that serves known "
            "vulnerabilities; run make audit where there is one"
        )
    return [
        f"{answer['name']} {answer['version']}: {found['id']}, "
        f"fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for answer in answers
        for found in answer["vulns"]
    ]
