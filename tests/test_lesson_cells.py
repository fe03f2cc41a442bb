"""Which cells a run executes is written in the notebook: all but those tagged `lesson`, at every door the same."""

import shutil
import subprocess
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
import pytest
from cell_names import binds, changes, reads
from project import BIN, command, environment, make_project, paragraph, printed, write_notebook
from test_notebooks import test_each_cell_of_a_step_says_whether_it_teaches_or_works as check_marks
from test_notebooks import test_work_depends_on_no_lesson as check_work

# what may stand at the top of a cell for nbdev, in spellings that it reads and in some that it does not
DIRECTIVES = (
    "", "#| eval: false\n", "#|eval: false\n", "#| eval:false\n", "#| eval: False\n", "\n#| eval: false\n",
    "# why\n#| eval: false\n", "#| hide\n", "#| hide\n#| eval: false\n", "#| notest\n", "#| exporti\n",
)  # fmt: skip


def insert(notebook: Path, after: str, *sources: str, tags: tuple[str, ...] = ()) -> None:
    """Put code cells of `sources` with `tags` after the first code cell that has the text `after`."""
    book = nbformat.read(notebook, 4)
    place = next(number for number, cell in enumerate(book.cells) if cell.cell_type == "code" and after in cell.source)
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}) for source in sources]
    book.cells[place + 1 : place + 1] = cells
    nbformat.write(book, notebook)


def papermill(project: Path, notebook: Path, out: Path) -> Path:
    """The copy `out` of `notebook`, executed by plain papermill in a plain kernel."""
    run = [str(BIN / "papermill"), "-k", "python3", "--no-progress-bar", str(notebook), str(out)]
    done = subprocess.run(run, cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def test_an_unmarked_cell_runs_whatever_its_directives(tmp_path):
    """Cells that change a list in place, which binds no name, are executed by `fraudnb run` as by papermill.

    `fraudnb source`, by which DVC knows that a step must run again, has them too.
    """
    project = make_project(tmp_path / "project", parameters="")
    work = [f"{directive}seen[{number}] = -1" for number, directive in enumerate(DIRECTIVES)]
    start = f"seen = [0] * {len(DIRECTIVES)}"
    notebook = write_notebook(project / "nbs/90_light.ipynb", start, *work, "print(seen)")
    insert(notebook, "seen = [0]", "only_taught = 1\nprint('taught')", tags=("lesson",))
    done = command(project, "run", "90_light")
    assert done.returncode == 0, done.stderr
    expected = f"{[-1] * len(DIRECTIVES)}\n"
    assert printed(project / "runs/main/90_light.ipynb") == expected
    assert printed(papermill(project, notebook, tmp_path / "plain.ipynb")) == f"taught\n{expected}"
    assert command(project, "source", "90_light", "--out", "light.py").returncode == 0
    source = (project / "light.py").read_text()
    assert all(f"seen[{number}] = -1" in source for number in range(len(DIRECTIVES))) and "taught" not in source


def test_a_working_cell_may_replace_an_exported_function(tmp_path):
    """What the notebook's other functions call is the new one, as in papermill, and not the library's."""
    project = make_project(tmp_path / "project", parameters="")
    notebook = Path(shutil.copy(project / "nbs/34_errors.ipynb", project / "nbs/90_errors.ipynb"))
    new = "def short(value, width=40):\n    return 'mine'"
    insert(notebook, "def join_names", new, "print(join_names(['Time', 'V1']))")
    book = nbformat.read(notebook, 4)
    for cell in book.cells:
        cell.metadata["tags"] = ["lesson"] if "test_eq(" in cell.source else []
    nbformat.write(book, notebook)
    done = command(project, "run", "90_errors")
    assert done.returncode == 0, done.stderr
    assert printed(project / "runs/main/90_errors.ipynb") == "mine, mine\n"


@pytest.mark.thorough
def test_rows_left_out_by_hand_are_left_out_at_every_door(tmp_path, small_run):
    """02 with lines that leave out its first ten hours: the same training rows by `fraudnb run` and by papermill."""
    project = shutil.copytree(small_run, tmp_path / "project")
    notebook = project / "nbs/02_preprocess.ipynb"
    hours = [f"{one}chosen[(time >= {3600 * n}) & (time < {3600 * (n + 1)})] = -1" for n, one in enumerate(DIRECTIVES)]
    insert(notebook, "chosen = time_parts", *hours)
    done = command(project, "run", "02_preprocess")
    assert done.returncode == 0, done.stderr
    times = pq.read_table(small_run / "data/main/train.parquet", columns=["Time"])["Time"].to_numpy()
    train = project / "data/main/train.parquet"
    assert pq.read_metadata(train).num_rows == (times >= 3600 * len(DIRECTIVES)).sum() < len(times)
    ours = train.read_bytes()
    papermill(project, notebook, tmp_path / "plain.ipynb")
    assert train.read_bytes() == ours


# -- the checks of the project's own notebooks find what they are for

PARAMETERS, EXPORTED = "rows: int = 1", "#| export\ndef twice(x):\n    return 2 * x"
WORK = "#| eval: false\nchosen = [rows]"


def doctored(folder: Path, *cells: tuple[str, str]) -> Path:
    """A notebook of parameters, an exported function, a working cell, then `cells` of tag and source."""
    book = nbformat.v4.new_notebook()
    for tag, source in (("parameters", PARAMETERS), ("", EXPORTED), ("", WORK), *cells):
        book.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": [tag] if tag else []}))
    book.metadata["kernelspec"] = {"display_name": "p", "language": "python", "name": "python3"}
    nbformat.write(book, folder / "01_doctored.ipynb")
    return folder / "01_doctored.ipynb"


SEES = ("", "#| eval: false\nprint(twice(chosen))")


@pytest.mark.parametrize(
    "cells",
    [
        (("lesson", "seen = 1"), ("", "#| eval: false\nprint(seen)")),
        (("lesson", "seen = 1"), ("", "#| eval: false\nif rows:\n    seen = 2\nprint(seen)")),
        (("lesson", "seen = 1"), ("", "#| eval: false\ndef f():\n    return seen\nprint(f())")),
        (("lesson", "chosen = [2]"), SEES),
        (("lesson", "for chosen in [2]: pass"), SEES),
        (("lesson", "chosen[0] = 2"), SEES),
        (("lesson", "chosen += [2]"), SEES),
        (("lesson", "chosen.append(2)"), SEES),
        (("lesson", "chosen[0].drop(inplace=True)"), SEES),
        (("lesson", "del chosen[0]"), SEES),
        (("lesson", "def f():\n    global chosen\n    chosen = 2"), SEES),
        (("lesson", "def twice(x): return x"), SEES),
        (("lesson", "import numpy as chosen"), SEES),
    ],
    ids=lambda cells: cells[0][1].replace("\n", " "),
)
def test_work_that_a_lesson_changes_is_found(tmp_path, cells):
    with pytest.raises(AssertionError, match="only a lesson may bind|which the work below uses"):
        check_work(doctored(tmp_path, *cells))


def test_harmless_lessons_are_let_be(tmp_path):
    lessons = (
        "twice(chosen)",
        "for n in [1]: print(n)",
        "few = chosen[:1]; few.append(1)",
        "[chosen for chosen in 'ab']",
    )
    later = ("#| eval: false\nfor n in chosen:\n    print(n)", SEES[1])
    notebook = doctored(tmp_path, *(("lesson", one) for one in lessons), *(("", one) for one in later))
    check_work(notebook)
    check_marks(notebook)


@pytest.mark.parametrize("tag, source", [("", "print(twice(2))"), ("lesson", WORK), ("lesson", EXPORTED)])
def test_cells_that_do_not_say_what_they_are_are_found(tmp_path, tag, source):
    with pytest.raises(AssertionError, match=r"tag it `lesson`|lesson and export"):
        check_marks(doctored(tmp_path, (tag, source)))


def test_names_of_cells():
    assert reads("x = x + y\nz = x") == ({"x", "y"}, set())
    assert reads("import json\nfor name in names:\n    json.loads(name)")[0] == {"names"}
    assert reads("def f(a):\n    b = a\n    return b + c") == (set(), {"c"})
    assert reads("if a:\n    b = 1\nprint(b)")[0] == {"a", "b", "print"}
    assert reads("if a:\n    b = 1\nelse:\n    b = 2\nprint(b)")[0] == {"a", "print"}
    assert binds("%time 1\nimport os.path\nx, y[0] = 1, 2\n[z for z in x]") == {"os", "x"}
    assert changes("x[0].y = 1\nz.update(x)\nlen(q)") == {"x", "z"}


# -- a run stops at the first cell that shows an error

STOPS = {
    "capture": ("%%capture out\n1 / 0", "ZeroDivisionError: division by zero"),
    "run": ("%run broken.py", "ZeroDivisionError: division by zero"),
    "time": ("%%time\n1 / 0", "ZeroDivisionError: division by zero"),
    "shown": ("get_ipython().run_cell('1 / 0');", "ZeroDivisionError: division by zero"),
    "tagged": ("1 / 0", "ZeroDivisionError: division by zero"),
    "exit": ("exit()", "KernelExit: exit() ended the kernel; nothing below this cell has run"),
    "sys.exit": ("import sys; sys.exit(0)", "SystemExit: the cell ended the notebook; nothing below it has run"),
}


@pytest.mark.parametrize("name", ["capture", "exit", *(pytest.param(one, marks=pytest.mark.thorough) for one in STOPS)])
def test_nothing_runs_below_a_cell_that_failed(tmp_path, name):
    """Whether the kernel calls it an error or not; the cell is named, exit code 1, and the next notebook waits."""
    source, told = STOPS[name]
    project = make_project(tmp_path / "project", parameters="")
    (project / "broken.py").write_text("1 / 0\n")
    notebook = write_notebook(project / "nbs/90_light.ipynb", "before = 1", "open('late', 'w').close()")
    insert(notebook, "before", source, tags=("raises-exception",) if name == "tagged" else ())
    write_notebook(project / "nbs/91_next.ipynb", "open('next', 'w').close()")
    done = command(project, "run", "90_light", "91_next")
    assert done.returncode == 1 and f"cell 2 of 90_light.ipynb failed with {told}. The cell: {source!r}" in done.stderr
    assert not (project / "late").exists() and not (project / "next").exists()
    assert (project / "runs/main/90_light.failed.ipynb").exists()


def test_exit_that_keeps_the_kernel_ends_nothing(tmp_path):
    project = make_project(tmp_path / "project", parameters="")
    write_notebook(project / "nbs/90_light.ipynb", "exit(keep_kernel=True)", "print('on')")
    done = command(project, "run", "90_light")
    assert done.returncode == 0 and printed(project / "runs/main/90_light.ipynb") == "on\n", done.stderr


# -- what editors write about the kernel


@pytest.mark.parametrize("engine", ["warm", pytest.param("fresh", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "metadata",
    [
        {"kernelspec": {"display_name": ".venv", "name": "python3"}},
        pytest.param({"kernelspec": {"display_name": "x", "name": "conda-env-x-py"}}, marks=pytest.mark.thorough),
        pytest.param({}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_a_notebook_of_another_editor_runs(tmp_path, metadata, engine):
    """Without a language, with the name of another machine's kernel, without either."""
    project = make_project(tmp_path / "project", parameters="")
    notebook = write_notebook(project / "theirs.ipynb", "print(rows * 3)", parameters="rows: int = 1")
    book = nbformat.read(notebook, 4)
    book.metadata = nbformat.from_dict(metadata)
    nbformat.write(book, notebook)
    done = command(project, "run", "theirs.ipynb", "-p", "rows", "2", "--engine", engine)
    assert done.returncode == 0, done.stderr
    assert printed(project / "runs/main/theirs.ipynb") == "6\n"


def test_a_notebook_in_another_language_is_refused(tmp_path):
    project = make_project(tmp_path / "project", parameters="")
    notebook = write_notebook(project / "theirs.ipynb", "x <- 1")
    book = nbformat.read(notebook, 4)
    book.metadata["kernelspec"] = {"display_name": "R", "name": "ir", "language": "R"}
    nbformat.write(book, notebook)
    done = command(project, "run", "theirs.ipynb")
    assert done.returncode == 2 and "theirs.ipynb is written in 'R'; only Python notebooks" in paragraph(done.stderr)
    assert not (project / "runs/main/theirs.partial.ipynb").exists()
