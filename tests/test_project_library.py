"""A copy of the project is run with its own library, whichever fraudnb is installed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import PACKAGE_ROOT
from project import command, make_project, paragraph, printed, write_notebook

from fraudnb.errors import InputError
from fraudnb.runs import foreign_library, run_notebook

WHICH = "import fraudnb; print(fraudnb.__file__)"


def copy_of_the_project(folder: Path) -> Path:
    """A project with a library of its own and a notebook that tells which one it has."""
    project = make_project(folder, parameters="", also=("fraudnb",))
    with open(project / "fraudnb/files.py", "a", encoding="utf-8") as module:
        module.write("\nOF_THE_COPY = True\n")
    write_notebook(project / "nbs/90_which.ipynb", WHICH, parameters="seed: int = 0")
    return project


@pytest.mark.parametrize("engine", ["warm", pytest.param("fresh", marks=pytest.mark.thorough)])
def test_a_copy_runs_with_its_own_library(tmp_path, engine):
    project = copy_of_the_project(tmp_path / "a copy")
    done = command(project, "run", "90_which", "--engine", engine)
    assert done.returncode == 0, done.stderr
    assert printed(project / "runs/main/90_which.ipynb") == f"{project}/fraudnb/__init__.py\n"


@pytest.mark.thorough
def test_a_sweep_of_a_copy_has_its_library(tmp_path):
    project = copy_of_the_project(tmp_path / "copy")
    done = command(project, "sweep", "90_which", "-g", "seed=1,2", "--name", "which", "--workers", "2")
    executed = list(project.glob("runs/which/*/90_which.ipynb"))
    assert len(executed) == 2, done.stderr
    assert {printed(one) for one in executed} == {f"{project}/fraudnb/__init__.py\n"}


@pytest.mark.thorough
def test_a_changed_metric_of_a_copy_counts(tmp_path, small_run):
    """04 in a copy whose Brier score is ten times as large."""
    project = shutil.copytree(small_run, tmp_path / "copy")
    shutil.copytree(PACKAGE_ROOT / "fraudnb", project / "fraudnb", ignore=shutil.ignore_patterns("__pycache__"))
    before = json.loads((project / "runs/main/metrics.json").read_text())["brier"]
    for path in (project / "fraudnb/metrics.py", project / "nbs/23_metrics.ipynb"):
        text, changed = re.subn(r'(values\[\\?"brier\\?"\] = )error ', r"\g<1>10 * error ", path.read_text())
        assert changed == 1
        path.write_text(text)
    done = command(project, "run", "04_evaluate")
    assert done.returncode == 0, done.stderr
    after = json.loads((project / "runs/main/metrics.json").read_text())["brier"]
    assert after == pytest.approx(10 * before, rel=1e-4)


def test_an_equal_copy_shares_what_is_loaded(tmp_path):
    """The same code is the same library, wherever it lies: no process is loaded for it."""
    project = make_project(tmp_path / "project", parameters="", also=("fraudnb",))
    assert foreign_library(project) is None
    (project / "fraudnb/more.py").touch()
    assert foreign_library(project) == PACKAGE_ROOT / "fraudnb"


def test_another_folders_fraudnb_is_refused(tmp_path):
    """A notebook of a copy, run from elsewhere or by a process that has loaded another library, such as a worker."""
    project = copy_of_the_project(tmp_path / "copy")
    with pytest.raises(InputError, match="has a fraudnb of its own, and this is the one in") as refused:
        run_notebook(project / "nbs/90_which.ipynb", tmp_path / "out.ipynb", {})
    assert f"{project} has" in str(refused.value) and f"PYTHONPATH={project}" in str(refused.value)
    elsewhere = make_project(tmp_path / "elsewhere", parameters="")
    done = command(elsewhere, "run", project / "nbs/90_which.ipynb")
    assert done.returncode == 2 and f"{project} has a fraudnb of its own" in paragraph(done.stderr)
    assert not list(tmp_path.rglob("*.partial.ipynb"))
