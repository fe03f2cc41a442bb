"""`fraudnb diff` on scratch repositories: revisions that are run for real, and the comment each change gets.

The comments stand in tests/comments/ for people to read; `UPDATE_COMMENTS=1 pytest tests/test_compare.py` writes them
anew after a change that was meant.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import made_once, mostly_thorough
from project import command, environment, paragraph, write_notebook

COMMENTS = Path(__file__).parent / "comments"

# a model that knows which rows are frauds, and says so through more or less noise; the revision's own library has it
LIBRARY = '''"""How much a model hears."""

import numpy as np


def probabilities(label, noise, seed):
    """Probabilities of fraud with normal noise on their logarithmic odds."""
    logit = 4 * label - 5 + noise * np.random.default_rng(seed).normal(size=len(label))
    return 1 / (1 + np.exp(-logit))
'''
DATA_PARAMETERS = 'data_folder: str = "data/main"\nrows: int = 3000'
DATA = (
    "import numpy as np, pandas as pd\nfrom pathlib import Path\nfrom fraudnb.runs import project_path",
    "table = pd.DataFrame({'row': range(rows), 'label': (np.arange(rows) % 40 == 0).astype(int)})\n"
    "table['amount'] = np.random.default_rng(0).exponential(80, rows).round(2)",
    "Path(project_path(data_folder)).mkdir(parents=True, exist_ok=True)\n"
    "table.to_parquet(project_path(data_folder) / 'test.parquet')",
)
TRAIN_PARAMETERS = (
    'data_folder: str = "data/main"\nmodel_folder: str = "models/main"\nnoise: float = 1.5\nseed: int = 0'
)
TRAIN = (
    "import hashlib, json, pandas as pd\nfrom fraudnb.runs import project_path\nfrom hearing import probabilities",
    "data = project_path(data_folder) / 'test.parquet'\ntable = pd.read_parquet(data)",
    "table['probability'] = probabilities(table['label'], noise, seed)",
    "place = project_path(model_folder)\nplace.mkdir(parents=True, exist_ok=True)\n"
    "table.to_parquet(place / 'scored.parquet')\n"
    "sha = hashlib.sha256(data.read_bytes()).hexdigest()\n"
    "about = {'source': 's3://bank/table', 'rows': len(table), 'test_sha256': sha}\n"
    "card = {'data': about, 'versions': {'numpy': '2'}}\n"
    "(place / 'card.json').write_text(json.dumps(card))",
)
EVALUATE_PARAMETERS = (
    'model_folder: str = "models/main"\nrun_folder: str = "runs/main"\nthreshold: float = 0.25\n'
    "review_cost: float = 5.0\nalert_budgets: list[float] = [50.0]"
)
EVALUATE = (
    "import pandas as pd\nfrom fraudnb.runs import project_path, record_numbers\n"
    "from fraudnb.schema import Schema, write_table",
    "scores = pd.read_parquet(project_path(model_folder) / 'scored.parquet').assign(weight=1.0)",
    "write_table(scores, project_path(run_folder) / 'scores.parquet', Schema(features=('V1',)), threshold=threshold)",
    "record_numbers({'test_days': 2.0, 'test_rows': len(scores), 'frauds_seen': int(scores['label'].sum())})",
)
STAGES = {
    "00_download": ([], ["data/main/test.parquet"]),
    "03_train": (["data/main/test.parquet", "hearing.py"], ["models/main/scored.parquet", "models/main/card.json"]),
    "04_evaluate": (["models/main/scored.parquet"], ["runs/main/scores.parquet", "runs/main/metrics.json"]),
}


def make_repository(folder: Path) -> None:
    """A git and DVC repository at `folder` with a small pipeline, committed, which has not been run."""
    folder.mkdir(parents=True)
    (folder / "settings.ini").touch()
    (folder / "README.md").write_text("A little model.\n")
    (folder / "hearing.py").write_text(LIBRARY)
    (folder / ".gitignore").write_text("data/\nmodels/\nruns/\n__pycache__/\n")
    write_notebook(folder / "nbs/00_download.ipynb", *DATA, parameters=DATA_PARAMETERS)
    write_notebook(folder / "nbs/03_train.ipynb", *TRAIN, parameters=TRAIN_PARAMETERS)
    write_notebook(folder / "nbs/04_evaluate.ipynb", *EVALUATE, parameters=EVALUATE_PARAMETERS)
    write_parameters(folder)
    stages = {
        stem: {
            "cmd": f"fraudnb run {stem}",
            "deps": [f"nbs/{stem}.ipynb", *needs],
            "params": [stem],
            "outs": [{one: {"persist": True}} for one in (*outputs, f"runs/main/{stem}.ipynb")],
        }
        for stem, (needs, outputs) in STAGES.items()
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    git(folder, "init", "--quiet")
    subprocess.run(["dvc", "init", "--quiet"], cwd=folder, check=True, env=environment())
    commit(folder)


def write_parameters(folder: Path, gate: dict | None = None, **values: dict) -> None:
    sections = {stem: {} for stem in STAGES} | values | {"gate": {"resamples": 500} | (gate or {})}
    (folder / "params.yaml").write_text(yaml.safe_dump(sections))


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    done = subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it is")


def change_cell(notebook: Path, before: str, after: str) -> None:
    book = nbformat.read(notebook, 4)
    (cell,) = [one for one in book.cells if before in one.source]
    cell.source = cell.source.replace(before, after)
    nbformat.write(book, notebook)


@pytest.fixture(scope="session")
def original(tmp_path_factory, worker_id) -> Path:
    """A repository whose last commit has been run by DVC, in its cache; to be read only."""

    def make(folder: Path) -> None:
        make_repository(folder)
        subprocess.run(["dvc", "repro", "--quiet"], cwd=folder, check=True, env=environment(), capture_output=True)
        commit(folder)
        for made in ("data", "models", "runs"):
            shutil.rmtree(folder / made)

    return made_once(tmp_path_factory, worker_id, "repository", make)


@pytest.fixture
def repository(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "repository", symlinks=True))


def library(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "hearing.py").write_text(LIBRARY.replace("noise * np", f"{text} * noise * np"))


def cell(notebook: str, before: str, after: str) -> Callable[[Path], None]:
    return lambda folder: change_cell(folder / f"nbs/{notebook}.ipynb", before, after)


# what head changes, and the exit code with --gate
CASES: dict[str, tuple[Callable[[Path], object], int]] = {
    "improvement": (library("0.6"), 0),
    "noise": (cell("03_train", "noise, seed)", "noise, 1)"), 0),
    "regression": (library("1.8"), 3),
    "changed_data": (lambda folder: write_parameters(folder, **{"00_download": {"rows": 4000}}), 0),
    "broken_head": (cell("03_train", "table = pd", "raise ValueError('no <b>table</b> | here')\ntable = pd"), 1),
    "parameter_only": (lambda folder: write_parameters(folder, **{"04_evaluate": {"threshold": 0.05}}), 0),
    "documentation_only": (lambda folder: (folder / "README.md").write_text("A little model, and its use.\n"), 0),
}


def readable(comment: str) -> str:
    """`comment` without what differs from run to run: revisions and times."""
    comment = re.sub(r"\([0-9a-f]{10}\)", "(REVISION)", comment)
    return re.sub(r"(?m)^(\| `\d\d_\w+` \|)( [\d.–]+ \|){2}$", r"\1 … | … |", comment)


def check_comment(name: str, comment: str) -> None:
    path = COMMENTS / f"{name}.md"
    if os.environ.get("UPDATE_COMMENTS"):
        path.write_text(readable(comment), encoding="utf-8")
    assert readable(comment) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", mostly_thorough(CASES, ("improvement", "regression", "broken_head")))
def test_comment(repository, tmp_path, name):
    change, code = CASES[name]
    change(repository)
    commit(repository)
    out = tmp_path / "comment.md"
    done = command(repository, "diff", "HEAD~1", "HEAD", "--gate", "--out", out)
    assert done.returncode == code, done.stderr
    check_comment(name, out.read_text(encoding="utf-8"))
    assert json.loads(out.with_suffix(".json").read_text())["format"] == 1
    assert git(repository, "worktree", "list").count("\n") == 0 and git(repository, "status", "--porcelain") == ""


@pytest.mark.thorough
def test_broken_base(repository, tmp_path):
    cell("03_train", "table = pd", "raise ValueError('no table')\ntable = pd")(repository)
    commit(repository)
    cell("03_train", "raise ValueError('no table')\n", "")(repository)
    commit(repository)
    done = command(repository, "diff", "HEAD~1", "HEAD", "--gate")
    assert done.returncode == 0, done.stderr
    check_comment("broken_base", done.stdout)


def test_without_a_committed_lock_the_own_one_is_asked(repository, tmp_path):
    """What base and head have in common comes from the cache: its run times are the same to the millisecond."""
    git(repository, "rm", "--quiet", "--cached", "dvc.lock")
    git(repository, "commit", "--quiet", "--message", "dvc.lock is this machine's")
    write_parameters(repository, **{"04_evaluate": {"threshold": 0.05}})
    git(repository, "commit", "--quiet", "--all", "--message", "another threshold")
    out = tmp_path / "comment.md"
    done = command(repository, "diff", "HEAD~1", "HEAD", "--out", out)
    assert done.returncode == 0, done.stderr
    comparison = json.loads(out.with_suffix(".json").read_text())
    seconds = {one["name"]: (one["base"], one["head"]) for one in comparison["seconds"]}
    assert all(seconds[name][0] == seconds[name][1] for name in ("00_download", "03_train")), seconds


def scores(folder: Path, **columns: object) -> Path:
    """A run's folder with scores of 400 rows, of which `columns` replace some."""
    from fraudnb.schema import Schema, write_table

    folder.mkdir(parents=True)
    label = (pd.RangeIndex(400) % 20 == 0).astype(int)
    table = pd.DataFrame({"row": range(400), "label": label, "weight": 1.0, "amount": 10.0})
    table = table.assign(**{"probability": 0.1 + 0.5 * table["label"]} | columns)
    write_table(table, folder / "scores.parquet", Schema(features=("V1",)), threshold=0.3)
    (folder / "metrics.json").write_text(json.dumps({"test_days": 1.0, "test_rows": 400}))
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    """A project without git, with the run `one`."""
    (tmp_path / "settings.ini").touch()
    (tmp_path / "nbs").mkdir()
    scores(tmp_path / "runs/one")
    return tmp_path


def diff(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command(project, "diff", *words)


def test_first_run_ever(runs):
    """There is nothing yet to compare with, and it says so."""
    (runs / "runs/empty").mkdir()
    (runs / "runs/empty/00_download.ipynb").write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4}))
    done = diff(runs, "empty", "one", "--gate")
    assert done.returncode == 0, done.stderr
    assert "**Nothing to compare with:** base has no result" in done.stdout
    assert "| metric | base | head |" in done.stdout


def test_renamed_metric_and_nan(runs):
    """A number that only one side has is in the table and in a sentence; NaN is no number, and no crash."""
    scores(runs / "runs/two")
    (runs / "runs/one/metrics.json").write_text('{"test_days": 1.0, "recall_at_5": 0.5, "odd": 1.0}')
    (runs / "runs/two/metrics.json").write_text('{"test_days": 1.0, "recall_at_five": 0.5, "odd": NaN}')
    done = diff(runs, "one", "two")
    assert done.returncode == 0, done.stderr
    assert "In base alone, or no number in the other: recall at 5, odd." in done.stdout
    assert "In head alone, or no number in the other: recall at five." in done.stdout


def test_other_labels_are_not_comparable(runs):
    scores(runs / "runs/two", label=(pd.RangeIndex(400) % 25 == 0).astype(int))
    done = diff(runs, "one", "two", "--gate")
    assert done.returncode == 0, done.stderr
    assert "**Not comparable:** `the test rows differ: " in done.stdout and "have another label" in done.stdout


def test_usage(runs):
    for words, expected in (
        (("one", "tow"), "There is no run's folder and no git revision tow."),
        (("one", "nbs"), "is no run's folder"),
    ):
        done = diff(runs, *words)
        assert done.returncode == 2 and expected in paragraph(done.stderr)
    (runs / "params.yaml").write_text("gate: {metric: pr_auc}")
    scores(runs / "runs/two", probability=0.2)
    done = diff(runs, "one", "two")
    assert done.returncode == 2 and "pr_auc is none that can be compared: average_precision" in paragraph(done.stderr)
    (runs / "params.yaml").write_text("gate: {metrik: pr_auc}")
    assert "gate cannot have metrik" in paragraph(diff(runs, "one", "two").stderr)


def test_damaged_scores(runs):
    scores(runs / "runs/two")
    whole = (runs / "runs/two/scores.parquet").read_bytes()
    (runs / "runs/two/scores.parquet").write_bytes(whole[: len(whole) // 2])
    done = diff(runs, "one", "two")
    assert done.returncode == 2 and "scores.parquet" in paragraph(done.stderr)


def test_dearer_than_tolerated(runs):
    """As good by average precision, but its threshold lets frauds pass: the gate refuses it for the cost."""
    from fraudnb.schema import Schema, write_table

    scores(runs / "runs/two", amount=100.0)
    shutil.rmtree(runs / "runs/one")
    scores(runs / "runs/one", amount=100.0)
    table = pd.read_parquet(runs / "runs/two/scores.parquet")
    table["probability"] *= 0.99  # another model in the same order
    write_table(table, runs / "runs/two/scores.parquet", Schema(features=("V1",)), threshold=0.9)
    done = diff(runs, "one", "two", "--gate")
    assert done.returncode == 3 and "**The gate refuses this:** head costs more than is tolerated" in done.stdout
    (runs / "params.yaml").write_text("gate: {tolerated_cost: 1000}")
    assert diff(runs, "one", "two", "--gate").returncode == 0
