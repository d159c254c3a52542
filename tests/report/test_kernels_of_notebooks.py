"""Where and how the kernels of notebooks run: in the user's directory, with time to start, and without a home."""

import os
import pwd
import sys
import tempfile
from pathlib import Path

import papermill
import pytest
from written_notebooks import write_notebook

from specdec_lib.config import cache_folder
from specdec_lib.params_files import load_params
from specdec_lib.report import pages
from specdec_lib.report.notebooks import ROOT, START_TIMEOUT, execute, start_timeout


def test_the_time_to_start_is_the_users_to_set(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda *_, **options: given.append(options) or no_answer(options)
    )
    for text, seconds in ((None, 600), ("1200", 1200)):
        monkeypatch.setenv(START_TIMEOUT, text) if text else monkeypatch.delenv(START_TIMEOUT, raising=False)
        failure = execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {})
        assert given[-1]["start_timeout"] == seconds
        assert failure == f"failed: Kernel didn't respond in {seconds} seconds; set {START_TIMEOUT} to more seconds"


def no_answer(options):
    raise RuntimeError(f"Kernel didn't respond in {options['start_timeout']} seconds")


@pytest.mark.parametrize("text", ["0", "-3", "soon", "1.5"])
def test_a_time_that_is_none_is_refused_before_anything_is_measured(text, monkeypatch, tmp_path):
    monkeypatch.setenv(START_TIMEOUT, text)
    with pytest.raises(ValueError, match=f"{START_TIMEOUT} is '{text}': give the seconds that a kernel may take"):
        start_timeout()
    monkeypatch.setattr(pages, "run_first_blocks", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=START_TIMEOUT):
        pages.make_reports(load_params("smoke"), tmp_path)


def test_a_kernel_runs_where_the_command_does_with_this_library_and_without_a_home(tmp_path, monkeypatch):
    """A relative folder for the cache means the same there; nobody knows the user, as in many containers."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("SPECDEC_CACHE", "models")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    expected = {"cache": str(cache_folder()), "library": str(ROOT), "python": sys.executable}
    code = (
        "import os, sys, specdec_lib\nfrom pathlib import Path\nfrom specdec_lib.config import cache_folder\n"
        "found = {'cache': str(cache_folder()), 'library': str(Path(specdec_lib.__file__).parents[1]), "
        f"'python': sys.executable}}\nassert found == {expected}, found"
    )
    write_notebook(tmp_path, "where", code)
    assert execute(tmp_path / "where.ipynb", tmp_path / "done.ipynb", {}) is None
    assert expected["cache"] == str(tmp_path / "elsewhere" / "models")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert "HOME" not in os.environ


def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_without_a_home_the_cache_is_a_folder_of_ones_own_among_temporary_files(monkeypatch, tmp_path):
    """Nobody else may put a library there that would be loaded."""
    for name in ("HOME", "SPECDEC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    (tmp_path / "specdec_lib-54321").mkdir()
    with pytest.raises(ValueError, match="specdec_lib-54321 is not yours: set SPECDEC_CACHE to a folder that is"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    assert cache_folder() == Path.cwd() / "caches" / "specdec_lib"
