"""The lessons of the notebooks, run on the library: each notebook with its exported cells replaced by imports.

nbdev-test executes the notebook's own text, so that a module may say anything: it never looks. tests/lessons.py does.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE_ROOT, mostly_thorough
from lessons import as_import
from project import environment, one_line

LESSONS = Path(__file__).with_name("lessons.py")
NOTEBOOKS = sorted(path.stem for path in (PACKAGE_ROOT / "nbs").glob("[!_]*.ipynb"))
# half of the time is these five's; tests of their own cover what they teach
LONG = {"14_sweep", "15_compare", "27_explain", "30_prequential", "31_quality"}
QUICK = [stem for stem in NOTEBOOKS if stem not in LONG]


def teach(project: Path, stem: str) -> subprocess.CompletedProcess[str]:
    """The lessons of the notebook `stem` in the folder `project`, on the library that is there."""
    words = [sys.executable, str(LESSONS), str(project / "nbs" / f"{stem}.ipynb")]
    env = environment(PYTHONPATH=str(project))
    return subprocess.run(words, cwd=project, env=env, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("stem", mostly_thorough(NOTEBOOKS, QUICK))
def test_lessons(stem):
    done = teach(PACKAGE_ROOT, stem)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("x = 1", "x = 1"),
        ("#| export\nfrom a import b as c\nimport d.e", "#| export\nfrom fraudnb.rule import c, d"),
        ("#|export\nA: int = 1\n_B, (C, D) = 2, (3, 4)", "#|export\nfrom fraudnb.rule import A, C, D, _B"),
        ("#| export\n@decorate\ndef f(a):\n    b = a", "#| export\nfrom fraudnb.rule import f"),
        ("#| export other\nclass F:\n    a = 1", "#| export other\nfrom fraudnb.other import F"),
        ("#| export\nif TYPE_CHECKING:\n    import numpy as np", "#| export\n"),
        ("#| export\nE = [number for number in (1, 2)]\nprint(E)", "#| export\nfrom fraudnb.rule import E"),
        ("#| exporti\n#| eval: false\ntry:\n    import g\nexcept ImportError:\n    g = None", None),
    ],
)
def test_an_exported_cell_becomes_an_import(cell, expected):
    """Of every name that it binds, private ones too; it executes nothing, and its directives stay."""
    expected = expected or "#| exporti\n#| eval: false\nfrom fraudnb.rule import g"
    assert as_import(cell, "rule") == expected


@pytest.mark.thorough
def test_a_wrong_library_fails_its_lesson(tmp_path):
    """Both comparisons of the rule turned round in the module alone: its lesson fails, though the notebook is right."""
    for name in ("nbs", "fraudnb"):
        shutil.copytree(PACKAGE_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(PACKAGE_ROOT / name, tmp_path)
    assert teach(tmp_path, "33_rule").returncode == 0
    module = tmp_path / "fraudnb/rule.py"
    text = module.read_text(encoding="utf-8")
    assert text.count(" >= self.") == 2
    module.write_text(text.replace(" >= self.", " < self."), encoding="utf-8")
    done = teach(tmp_path, "33_rule")
    assert done.returncode == 1 and "AssertionError" in done.stderr, one_line(done.stderr)
