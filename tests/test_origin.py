"""No number, table or model beside something it is not of: what numbers are of, and what a run by hand replaces."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pyarrow.parquet as pq
import pytest
from project import BIN, command, environment, make_project, paragraph, snapshot, transactions, write_notebook

FOUR = "04_evaluate"


@pytest.fixture
def project(small_run, tmp_path) -> Path:
    """A copy of a finished run that a test may change."""
    return Path(shutil.copytree(small_run, tmp_path / "project"))


def tool(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A standard tool, such as papermill, run in the folder `project`."""
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]], cwd=project, env=environment(), capture_output=True, text=True, timeout=300
    )


def papermill(project: Path, stem: str, *words: str) -> subprocess.CompletedProcess[str]:
    return tool(project, "papermill", f"nbs/{stem}.ipynb", f"{stem}.out.ipynb", *words)


def run_all(project: Path, stem: str) -> subprocess.CompletedProcess[str]:
    """The notebook as JupyterLab's Run All executes it: in its own folder, with nothing injected."""
    return tool(project, "jupyter", "execute", f"nbs/{stem}.ipynb")


def git(project: Path, *words: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *who, *words], cwd=project, check=True, capture_output=True)


def refused(project: Path, *words: str) -> str:
    """The one paragraph with which `fraudnb` refuses `words`, as wrong input."""
    done = command(project, *words)
    assert done.returncode == 2 and done.stdout == "", done
    return paragraph(done.stderr)


def site_text(project: Path, page: str = "runs/main/index.html") -> str:
    """The text of a page of a report on the project's runs."""
    done = command(project, "report", "--out", "site")
    assert done.returncode == 0, done.stderr
    return re.sub(r"<[^>]+>", " ", (project / "site" / page).read_text(encoding="utf-8"))


# -- whose numbers


def other_model(project: Path) -> None:
    (project / "models/main/model.onnx").write_bytes(b"another model")


def other_rows(project: Path) -> None:
    path = project / "data/main/test.parquet"
    pd.read_parquet(path).head(10).to_parquet(path)


def other_threshold(project: Path) -> None:
    path = project / "models/main/evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": 0.01}))


def other_scores(project: Path) -> None:
    path = project / "runs/main/scores.parquet"
    pd.read_parquet(path).head(10).to_parquet(path)


def other_figure(project: Path) -> None:
    (project / "runs/main/confusion.png").write_bytes(b"another figure")


def other_numbers(project: Path) -> None:
    (project / "runs/main/metrics.json").write_text('{"average_precision": 0.99}')


CHANGES = {
    other_model: "models/main holds another model",
    other_rows: "data/main/test.parquet has other rows",
    other_threshold: "models/main decides by another threshold or policy",
    other_scores: "runs/main/scores.parquet is of another evaluation",
    other_figure: "runs/main/confusion.png is of another evaluation",
    other_numbers: "runs/main/metrics.json is of another evaluation",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_numbers_of_something_else_are_refused(project, change):
    assert command(project, "metrics").stderr == ""
    change(project)
    message = refused(project, "metrics", "--json")
    assert CHANGES[change] in message and "`fraudnb run 04_evaluate` renews them" in message


def test_a_report_shows_no_numbers_of_another_model(project):
    assert "Metrics on test rows" in site_text(project)
    other_model(project)
    page = site_text(project)
    assert "Metrics on test rows" not in page and "models/main holds another model" in page
    assert "no numbers shown: The numbers of runs/main" in site_text(project, "index.html")


def test_a_comparison_takes_no_scores_of_another_model(project):
    other_model(project)
    assert "models/main holds another model" in refused(project, "diff", "runs/main", "runs/main")
    (project / "runs/main/of.json").unlink()  # an earlier version's run
    card = project / "models/main/card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": "0" * 64}))
    assert "another model than its card" in refused(project, "diff", "runs/main", "runs/main")


def test_rows_that_the_model_was_not_trained_on_ask_for_a_new_one(project):
    for name in ("train", "test"):
        path = project / f"data/main/{name}.parquet"
        pd.read_parquet(path).head(1000).to_parquet(path)
    assert "`fraudnb run 03_train 04_evaluate` renews them" in refused(project, "metrics")


def test_changed_code_and_parameters_are_said(project):
    """They make no number wrong: it is of the model and the rows it names."""
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("resamples: 100", "resamples: 100, review_cost: 7"))
    book = nbformat.read(project / f"nbs/{FOUR}.ipynb", 4)
    book.cells.append(nbformat.v4.new_code_cell("#| eval: false\nlooked_at = True"))
    nbformat.write(book, project / f"nbs/{FOUR}.ipynb")
    done = command(project, "metrics", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["test_rows"] > 0
    assert "The code of 04_evaluate has changed" in done.stderr
    assert "measured with review_cost = 5.0; params.yaml has 7.0" in done.stderr
    assert "The code of 04_evaluate has changed" in command(project, "metrics").stdout


def test_remarks_and_other_modules_are_no_change(project):
    book = nbformat.read(project / f"nbs/{FOUR}.ipynb", 4)
    book.cells.insert(1, nbformat.v4.new_markdown_cell("A remark."))
    book.cells[-1].source = book.cells[-1].source.replace("\n", "\n# a remark\n", 1)
    nbformat.write(book, project / f"nbs/{FOUR}.ipynb")
    assert command(project, "metrics", "--json").stderr == ""


def test_numbers_of_a_commit_are_called_so(project):
    """A fresh clone has metrics.json and nothing that says what it is of; so has a checkout that was moved by git."""
    (project / ".gitignore").write_text("/data/\n/models/\n/runs/main/*\n!/runs/main/metrics.json\n")
    git(project, "init", "--quiet")
    other_numbers(project)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "numbers")
    done = command(project, "metrics", "--json")
    assert json.loads(done.stdout) == {"average_precision": 0.99}
    assert re.fullmatch(r"As committed in [0-9a-f]+ of [0-9-]+; not measured here\.\n", done.stderr)
    git(project, "clone", "--quiet", ".", "clone")
    assert "As committed in" in command(project / "clone", "metrics").stdout
    assert "As committed in" in site_text(project / "clone")


def test_numbers_of_which_nothing_is_known_are_shown_with_that_remark(project):
    (project / "runs/main/of.json").unlink()
    done = command(project, "metrics", "--json")
    assert done.returncode == 0 and "Nothing says what these numbers are of" in done.stderr
    (project / "runs/main/of.json").write_text('{"format": 1')
    assert "of.json is damaged" in refused(project, "metrics")


@pytest.mark.thorough
@pytest.mark.parametrize("how", [papermill, run_all], ids=["papermill", "run-all"])
def test_a_model_trained_by_hand_has_its_own_numbers(project, how):
    """03 by itself: the old numbers are refused. 04 by itself: the new ones are there, with nobody to gather them."""
    before = json.loads((project / "runs/main/metrics.json").read_text())
    book = nbformat.read(project / "nbs/03_train.ipynb", 4)
    (cell,) = [one for one in book.cells if "parameters" in one.metadata.get("tags", [])]
    cell.source = cell.source.replace('model: str = "lightgbm"', 'model: str = "decision_tree"')
    nbformat.write(book, project / "nbs/03_train.ipynb")
    (project / "params.yaml").write_text("04_evaluate: {resamples: 100}\n")
    assert how(project, "03_train").returncode == 0
    done = command(project, "metrics")
    assert done.returncode in (0, 2)  # a model without an evaluation need not be the current one yet
    assert ("another model" in done.stderr) == (done.returncode == 2)
    assert how(project, FOUR).returncode == 0
    done = command(project, "metrics", "--json")
    numbers = json.loads(done.stdout)
    evaluation = json.loads((project / "models/main/evaluation.json").read_text())
    assert done.stderr == "" and numbers == evaluation["metrics"]
    assert numbers["average_precision"] != before["average_precision"]


@pytest.mark.thorough
def test_the_command_and_the_notebook_write_the_same_file(project):
    """The runner gathers what was recorded, the notebook writes what it has measured: byte for byte the same."""
    path = project / "runs/main/metrics.json"
    gathered = path.read_bytes()
    assert papermill(project, FOUR, "-p", "resamples", "100").returncode == 0
    assert path.read_bytes() == gathered
    done = command(project, "run", FOUR, "-p", "run_folder", "runs/aside", "-p", "policy", "f1")
    assert done.returncode == 0 and path.read_bytes() == gathered
    assert command(project, "metrics", "aside").returncode == 0
    assert "decides by another threshold or policy" in refused(project, "metrics")


@pytest.mark.thorough
def test_a_run_of_a_sweep_says_what_its_numbers_are_of(project):
    done = command(project, "sweep", "03_train", "--then", FOUR, "-g", "model=decision_tree", "-p", "resamples", "100")
    assert done.returncode == 0, done.stderr
    (run,) = [path.parent for path in (project / "runs/sweep").glob("*/of.json")]
    name = f"sweep/{run.name}"
    assert command(project, "metrics", name, "--json").stderr == ""
    (run / "model/model.onnx").write_bytes(b"another model")
    assert "holds another model" in refused(project, "metrics", name)


# -- whose table


def table_of(project: Path) -> dict:
    """Rows and source of the project's table."""
    metadata = pq.read_metadata(project / "data/main/transactions.parquet")
    return {"rows": metadata.num_rows} | json.loads(metadata.metadata[b"fraudnb"])


@pytest.fixture
def own(tmp_path) -> Path:
    """A project with a table of its own, of 300 rows, which params.yaml names."""
    project = make_project(tmp_path / "own", "00_download: {source: own.csv}\n")
    transactions().to_csv(project / "own.csv", index=False)
    return project


def test_run_all_takes_the_values_of_the_project(own):
    """The cell's default is a sample of 20,000 rows."""
    assert run_all(own, "00_download").returncode == 0
    assert (table_of(own)["rows"], table_of(own)["source"]) == (300, "own.csv")


@pytest.mark.thorough
@pytest.mark.parametrize("how", [run_all, papermill, lambda project, stem: papermill(project, stem, "-p", "seed", "1")])
def test_what_nobody_has_named_replaces_no_table(own, how):
    assert command(own, "run", "00_download").returncode == 0
    (own / "params.yaml").write_text("")
    before = snapshot(own / "data/main")
    done = how(own, "00_download")
    assert done.returncode != 0 and snapshot(own / "data/main") == before
    said = r"data/main/transactions.parquet, of source 'own.csv'.*, would give way to one of source 'sample:20000'"
    assert re.search(said, done.stderr)
    assert "name another data_folder, or remove data/main/transactions.parquet first" in done.stderr
    (own / "data/main/transactions.parquet").unlink()
    assert how(own, "00_download").returncode == 0 and table_of(own)["rows"] == 20_000


@pytest.mark.thorough
def test_a_source_that_is_given_wins(own):
    """Even if it is the cell's default; what it replaces is said."""
    assert command(own, "run", "00_download").returncode == 0
    assert papermill(own, "00_download", "-p", "source", "sample:20000").returncode == 0
    assert table_of(own)["rows"] == 20_000
    done = command(own, "run", "00_download")
    assert done.returncode == 0 and table_of(own)["rows"] == 300
    assert done.stderr.splitlines() == [
        "data/main/transactions.parquet, of source 'sample:20000', has given way to one of source 'own.csv'."
    ]
    assert command(own, "run", "00_download").stderr == ""


@pytest.mark.thorough
def test_a_source_that_is_typed_wins(own):
    """What stands in the cell and is not committed has been typed."""
    git(own, "init", "--quiet")
    git(own, "add", "nbs")
    git(own, "commit", "--quiet", "--message", "notebooks")
    transactions(rows=400).to_csv(own / "other.csv", index=False)
    assert run_all(own, "00_download").returncode == 0
    path = own / "nbs/00_download.ipynb"
    path.write_text(path.read_text().replace('source: str = \\"sample:20000\\"', 'source: str = \\"other.csv\\"'))
    assert run_all(own, "00_download").returncode == 0
    assert (table_of(own)["rows"], table_of(own)["source"]) == (400, "other.csv")


@pytest.mark.thorough
def test_a_recipe_is_whole(project):
    """What -f leaves out has the cell's default, whatever params.yaml has."""
    (project / "params.yaml").write_text("02_preprocess: {split: stratified}\n")
    (project / "recipe.yaml").write_text("02_preprocess: {seed: 1}\n")
    assert command(project, "run", "02_preprocess", "-f", "recipe.yaml").returncode == 0
    metadata = pq.read_metadata(project / "data/main/test.parquet").metadata
    chosen = json.loads(metadata[b"fraudnb"])["preprocess"]
    assert (chosen["split"], chosen["seed"]) == ("temporal", 1)
    assert run_all(project, "02_preprocess").returncode == 0
    metadata = pq.read_metadata(project / "data/main/test.parquet").metadata
    assert json.loads(metadata[b"fraudnb"])["preprocess"]["split"] == "stratified"


@pytest.mark.thorough
def test_a_model_of_another_source_gives_way_to_a_named_one_only(project):
    card = project / "models/main/card.json"
    content = json.loads(card.read_text())
    card.write_text(json.dumps(content | {"data": content["data"] | {"source": "s3://bank/real"}}))
    before = snapshot(project / "models/main")
    done = run_all(project, "03_train")
    assert done.returncode != 0 and snapshot(project / "models/main") == before
    assert "models/main, of source 's3://bank/real', would give way" in done.stderr
    assert "name another model_folder" in done.stderr
    assert command(project, "run", "03_train").returncode == 0


# -- a notebook that did not come to its end


def test_an_early_exit_is_a_failure_everywhere(tmp_path):
    """`sys.exit(0)`: the next notebook may need what the cells below it make."""
    project = make_project(tmp_path / "project", "{}\n")
    write_notebook(project / "nbs/50_exit.ipynb", "print(1)", "import sys\nsys.exit(0)", "open('late', 'w').close()")
    write_notebook(project / "nbs/51_next.ipynb", "open('next', 'w').close()")
    done = command(project, "run", "50_exit", "51_next")
    assert done.returncode == 1 and not (project / "late").exists() and not (project / "next").exists()
    message = paragraph(done.stderr)
    assert "cell 2 of 50_exit.ipynb" in message and "sys.exit(0)" in message
    assert "50_exit.failed.ipynb" in message
    assert "failed" in site_text(project) and "done" not in site_text(project)


@pytest.mark.parametrize(
    ("cell", "options"),
    [("import os\nos._exit(3)", []), ("import time\ntime.sleep(60)", ["--execution-timeout", "2"])],
    ids=["died", "time-limit"],
)
def test_a_notebook_that_papermill_did_not_finish_has_failed(tmp_path, cell, options):
    project = make_project(tmp_path / "project", "{}\n")
    write_notebook(project / "nbs/51_die.ipynb", "print(1)", cell, "print(2)")
    (project / "runs/main").mkdir(parents=True)
    done = tool(project, "papermill", "-k", "python3", "nbs/51_die.ipynb", "runs/main/51_die.ipynb", *options)
    assert done.returncode != 0
    page = site_text(project)
    assert "failed" in page and "done" not in page and "Failed in cell 2 of 51_die" in page


def test_a_tuple_is_a_list(tmp_path):
    """Papermill would write it as a text."""
    from fraudnb.runs import check_parameters

    book = write_notebook(tmp_path / "a.ipynb", parameters='shown: list[str] = ["V1"]\nmore: dict = {}')
    values = check_parameters(book, {"shown": ("V1", "V2"), "more": {"a": (1, ("b",))}})
    assert values == {"shown": ["V1", "V2"], "more": {"a": [1, ["b"]]}}
