"""The notebooks are the source: exported, clean, readable, and runnable by the standard tools."""

import ast
import builtins
import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
import yaml
from cell_names import binds, changes, reads

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))

STEPS = [path for path in NOTEBOOKS if path.stem[:2] <= "04"]


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_library_is_exported_and_notebooks_are_clean(tmp_path):
    """nbdev-export and nbdev-clean, run on a copy, change nothing."""
    for name in ("nbs", "fraudnb"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, tmp_path)
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([command], cwd=tmp_path, check=True, capture_output=True)
    for name in ("nbs", "fraudnb"):
        for made in sorted(path for path in (tmp_path / name).rglob("*") if path.suffix in (".py", ".ipynb")):
            ours = ROOT / made.relative_to(tmp_path)
            assert ours.exists() and ours.read_bytes() == made.read_bytes(), f"{ours}: run nbdev-export and nbdev-clean"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_hold_one_definition(notebook):
    cells = code_cells(notebook)
    lines = [sum(1 for line in cell.splitlines() if line.strip()) for cell in cells]
    assert statistics.median(lines) <= 10 and max(lines) <= 40
    for cell in (cell for cell in cells if re.search(r"^#\| export", cell, re.MULTILINE)):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        definitions = [node for node in ast.parse(cell).body if isinstance(node, kinds)]
        assert len(definitions) <= 1
        assert all(ast.get_docstring(node) for node in definitions), f"no docstring: {definitions[0].name}"


def conflict_marks(cells: list[dict]) -> list[str]:
    """Lines of `cells` that a merge left for somebody to resolve, as git writes them or, in Markdown, nbdev-merge."""
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    return [line for line in lines if re.match(r"`?(?:<{7}|={7}|>{7}|\|{7})(?:\s|`|$)", line)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_merge_is_resolved(notebook):
    """The rest lets such a cell pass: it is Markdown, and both versions beside it are executed one after the other."""
    assert not conflict_marks(json.loads(notebook.read_text(encoding="utf-8"))["cells"])


def test_an_unresolved_merge_is_found(tmp_path):
    """What nbdev-merge makes of two changes of one cell, and what git alone would leave."""
    versions = []
    for name, text in (("base", "x = 1"), ("ours", "x = 2"), ("theirs", "x = 3")):
        cells = [
            {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": text}
        ]
        versions.append(tmp_path / name)
        versions[-1].write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    base, ours, theirs = map(str, versions)
    done = subprocess.run(
        ["nbdev-merge", base, ours, theirs, "nbs/x.ipynb"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert len(conflict_marks(json.loads(versions[1].read_text())["cells"])) == 3, done.stderr
    assert len(conflict_marks([{"source": ["<<<<<<< HEAD\n", "x\n", "=======\n", "y\n", ">>>>>>> theirs"]}])) == 3
    assert not conflict_marks([{"source": ["a = b\n", "======== \n", "print('<<<<<<<')\n", ">>> 1"]}])


@pytest.mark.parametrize("notebook", [path for path in NOTEBOOKS if path.stem[:2] <= "04"], ids=lambda path: path.stem)
def test_pipeline_notebooks_have_one_parameters_cell_and_a_kernel(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    tagged = [cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert content["metadata"]["kernelspec"].keys() >= {"display_name", "language", "name"}


@pytest.mark.parametrize("notebook", [path for path in NOTEBOOKS if path.stem[:2] <= "05"], ids=lambda path: path.stem)
def test_no_lesson_overwrites_a_parameter(notebook):
    """Papermill runs the lessons too: a name they share with a parameter would change the run behind its back."""
    from fraudnb.runs import read_parameters

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lessons = [
        cell for cell in cells if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", [])
    ]
    for cell in lessons:
        tree = ast.parse("".join(line for line in cell["source"] if not line.startswith(("%", "!"))))
        inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.comprehension)
        own = {id(one) for part in ast.walk(tree) if isinstance(part, inner) for one in ast.walk(part)}
        names = [one for one in ast.walk(tree) if isinstance(one, ast.Name) and id(one) not in own]
        stored = {one.id for one in names if isinstance(one.ctx, ast.Store)}
        overwritten = stored & set(read_parameters(notebook))
        assert not overwritten, f"{notebook.stem}: {overwritten}"


def cells_by_kind(notebook: Path) -> list[tuple[int, str, str]]:
    """Number, kind ("lesson", "export", "parameters" or "work") and source of each code cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = []
    for number, cell in enumerate(cells, start=1):
        tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
        if cell["cell_type"] == "code":
            exported = re.search(r"^#\s*\|\s*export", source, re.MULTILINE)
            kinds = ["lesson"] * ("lesson" in tags) + ["export"] * bool(exported)
            kinds += ["parameters"] * ("parameters" in tags)
            assert len(kinds) <= 1, f"cell {number} of {notebook.name} is {' and '.join(kinds)}"
            found.append((number, *(kinds or ["work"]), source))
    return found


@pytest.mark.parametrize("notebook", STEPS, ids=lambda path: path.stem)
def test_each_cell_of_a_step_says_whether_it_teaches_or_works(notebook):
    """What nbdev-test runs, without data, is a lesson; what works on data is left out by nbdev-test.

    Parameters, exported cells and imports are for both. So no cell slips through both doors, or runs by neither.
    """
    from nbdev.test import nb_test_cells

    tested = {cell.id for cell in nb_test_cells(notebook)}
    ids = [cell.get("id") for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    for number, kind, source in cells_by_kind(notebook):
        statements = [type(one) for one in ast.parse(re.sub("^[%!].*", "pass", source, flags=re.MULTILINE)).body]
        both = kind in ("export", "parameters") or set(statements) <= {ast.Import, ast.ImportFrom}
        taught = ids[number - 1] in tested
        assert both or taught == (kind == "lesson"), (
            f"cell {number} of {notebook.name}: tag it `lesson` (fraudnb run leaves it out), "
            f"or begin it with `#| eval: false` (nbdev-test leaves it out)"
        )


@pytest.mark.parametrize("notebook", STEPS, ids=lambda path: path.stem)
def test_work_depends_on_no_lesson(notebook):
    """`fraudnb run`, which leaves lessons out, and papermill, which does not, do the same work.

    A working cell reads only what parameters, exported cells and earlier working cells bind, and no lesson binds or
    changes, as far as its text shows, what a cell below it reads.
    """
    cells = cells_by_kind(notebook)
    work = [(number, source) for number, kind, source in cells if kind != "lesson"]
    bound = {number: binds(source) for number, _, source in cells}
    everywhere = set().union(*(bound[number] for number, _ in work))
    known, taught = set(dir(builtins)), set()
    for number, kind, source in cells:
        if kind == "lesson":
            taught |= bound[number]
            later = [names for place, other in work for names in reads(other)[int(place < number) :]]
            above = set().union(*(bound[place] for place, _ in work if place < number))
            hit = (bound[number] | changes(source)) & above & set().union(*later)
            assert not hit, f"the lesson in cell {number} of {notebook.name} changes {hit}, which the work below uses"
        else:
            now, when_called = reads(source)
            # what a branch of this very cell may bind, and no lesson does, fails by every door if it does not
            now -= known | (bound[number] - taught)
            missing = now | (when_called - known - everywhere)
            assert not missing, f"cell {number} of {notebook.name} uses {missing}, which only a lesson may bind"
            known |= bound[number]


def test_every_section_of_values_fits_its_notebook():
    """params.yaml and the recipes name parameters that exist, with values of their types."""
    from fraudnb.runs import check_parameters, find_notebook, read_values

    for path in (ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))):
        for stem, values in read_values(path, ROOT).items():
            check_parameters(find_notebook(stem, ROOT), values)


def test_dvc_has_one_stage_per_notebook():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    pipeline = [path.stem for path in NOTEBOOKS if path.stem[:2] <= "04"]
    assert [name for name in stages if name != "source"] == pipeline == stages["source"]["foreach"]
    for name in pipeline:
        assert stages[name]["cmd"] == f"fraudnb run {name}"
        assert f"build/sources/{name}.py" in stages[name]["deps"]
        assert stages[name]["params"] == [name.partition("_")[2]]
    assert "params.yaml" in stages["source"]["do"]["deps"]


def test_imports_point_the_right_way():
    """From 0x to 1x and never back, but for the command, which imports late; the model needs no pandas."""
    modules = {path.stem.partition("_")[2]: path.stem for path in NOTEBOOKS}
    for module, notebook in modules.items():
        tree = ast.parse((ROOT / "fraudnb" / f"{module}.py").read_text(encoding="utf-8"))
        imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1}
        if notebook > "09":
            assert all(modules[name] > "09" for name in imported), f"{notebook} imports {imported}"
    code = "import sys, fraudnb.model; sys.exit(any(name in sys.modules for name in ('pandas', 'sklearn', 'pyarrow')))"
    assert subprocess.run(["python", "-c", code], cwd=ROOT).returncode == 0
