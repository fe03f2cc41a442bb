"""The pipeline under DVC: what is up to date is not run again, here or in another clone."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import made_once

ROOT = Path(__file__).parent.parent
STAGES = ["00_download", "01_explore", "02_preprocess", "03_train", "04_evaluate"]


def command(*words: str, folder: Path, env: dict[str, str] | None = None) -> str:
    """Run a command in `folder`; its output. It must succeed."""
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout + done.stderr


def executed(output: str) -> list[str]:
    """The notebooks that `dvc repro` ran, by its output."""
    return re.findall(r"> fraudnb run (\w+)", output)


def copy_project(folder: Path) -> Path:
    """A git checkout of the project as it stands here, without this machine's dvc.lock, on a sample of 20,000 rows."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    values = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    values["download"]["source"] = "sample:20000"
    values["evaluate"]["resamples"] = 100
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command("git", "init", "--quiet", folder=folder)
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    command("git", "add", "--all", folder=folder)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    command("git", *author, "commit", "--quiet", "--message", "as it is", folder=folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """A checkout in which `dvc repro` has run once; to be read only."""

    def make(folder: Path) -> None:
        copy_project(folder)
        assert executed(command("dvc", "repro", folder=folder)) == STAGES
        commit(folder)

    return made_once(tmp_path_factory, worker_id, "finished", make)


@pytest.fixture
def project(finished, tmp_path):
    """A copy of the finished checkout that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "project"))


def change_notebook(path: Path, change) -> None:
    """Apply `change` to each cell of the notebook at `path`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for number, cell in enumerate(content["cells"]):
        change(number, cell)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_second_repro_runs_nothing(project):
    assert "up to date" in command("dvc", "repro", folder=project)


def test_outputs_ids_and_remarks_rerun_no_notebook(project):
    """A notebook opened and executed in JupyterLab differs from the committed one, but not in what it computes."""

    def as_if_opened(number, cell):
        cell["id"] = f"other-{number}"
        if cell["cell_type"] == "code":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["hello\n"]}]
            cell["execution_count"] = number
        else:
            cell["source"] = ["Another remark.\n", *cell["source"]]

    before = {name: (project / f"runs/main/{name}.ipynb").stat().st_mtime_ns for name in STAGES}
    for name in STAGES:
        change_notebook(project / f"nbs/{name}.ipynb", as_if_opened)
    assert executed(command("dvc", "repro", folder=project)) == []
    assert before == {name: (project / f"runs/main/{name}.ipynb").stat().st_mtime_ns for name in STAGES}
    assert "up to date" in command("dvc", "repro", folder=project)


def test_a_parameter_of_04_reruns_04_alone(project):
    values = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    values["evaluate"]["review_cost"] = 7.0
    (project / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert executed(command("dvc", "repro", folder=project)) == ["04_evaluate"]


def test_one_and_one_point_nought_are_two_values(project):
    """DVC takes 1, 1.0 and true for equal; a notebook need not."""
    for text, ran in (("1.0", ["03_train", "04_evaluate"]), ("1", ["03_train", "04_evaluate"]), ("1", [])):
        values = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
        settings = {"n_estimators": 5, "max_features": yaml.safe_load(text)}
        values["train"] |= {"model": "extra_trees", "model_settings": settings}
        (project / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        assert executed(command("dvc", "repro", folder=project)) == ran, text


def test_old_and_new_names_of_a_section_at_once_are_refused(project):
    with open(project / "params.yaml", "a", encoding="utf-8") as file:
        file.write("03_train: {seed: 1}\n")
    done = subprocess.run(["dvc", "repro"], cwd=project, capture_output=True, text=True)
    assert done.returncode != 0 and "two sections for 03_train: 'train' and '03_train'" in done.stderr


@pytest.mark.thorough
def test_experiments_are_made_on_the_command_line(project):
    """`dvc exp run -S` changes a parameter, runs what depends on it, and keeps the result beside the others."""
    author = {"GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "t@example.com"}
    env = os.environ | author | {name.replace("AUTHOR", "COMMITTER"): value for name, value in author.items()}
    words = ["-S", "train.model=extra_trees", "-S", "+train.model_settings={n_estimators: 5}", "-S", "+evaluate.seed=3"]
    output = command("dvc", "exp", "run", "--name", "trees", *words, folder=project, env=env)
    assert executed(output) == ["03_train", "04_evaluate"]
    card = json.loads((project / "models/main/card.json").read_text())
    assert card["parameters"]["train"]["model"] == "extra_trees"
    shown = command("dvc", "exp", "show", "--csv", "--only-changed", folder=project, env=env)
    assert "trees" in shown and "extra_trees" in shown, shown


@pytest.mark.thorough
def test_changed_code_of_a_notebook_reruns_it(project):
    def more_code(number, cell):
        if number == 2 and cell["cell_type"] != "code":
            source = ["#| eval: false\n", "looked_at = True"]
            cell |= {"cell_type": "code", "source": source, "outputs": [], "execution_count": None}

    change_notebook(project / "nbs/01_explore.ipynb", more_code)
    assert executed(command("dvc", "repro", folder=project)) == ["01_explore"]


def test_a_failing_step_leaves_the_earlier_outputs(project):
    """DVC deletes outputs before a stage runs unless told not to; a wrong value must cost nothing."""
    values = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    values["download"]["source"] = "no/such/file.csv"
    (project / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    kept = ["data/main/transactions.parquet", "runs/main/00_download.ipynb", "models/main/model.onnx"]
    before = [(project / name).read_bytes() for name in kept]
    done = subprocess.run(["dvc", "repro"], cwd=project, capture_output=True, text=True)
    assert done.returncode != 0 and "file.csv" in done.stderr
    assert [(project / name).read_bytes() for name in kept] == before


@pytest.mark.thorough
def test_pull_in_another_clone_runs_nothing(project, tmp_path, s3, bucket):
    env = {**os.environ, **{name: value for name, value in s3.env.items() if name.startswith("AWS_")}}
    command("dvc", "remote", "modify", "storage", "url", f"s3://{bucket}/dvc", folder=project)
    commit(project)
    command("dvc", "push", folder=project, env=env)
    clone = tmp_path / "clone"
    command("git", "clone", "--quiet", str(project), str(clone), folder=tmp_path)
    command("dvc", "pull", folder=clone, env=env)
    output = command("dvc", "repro", folder=clone, env=env)
    assert executed(output) == []
    numbers = [(folder / "runs/main/metrics.json").read_bytes() for folder in (project, clone)]
    assert numbers[0] == numbers[1]


@pytest.mark.thorough
def test_standard_tools_read_the_run(project):
    """`dvc metrics show` reads metrics.json; plain papermill runs a notebook with a parameter."""
    shown = json.loads(command("dvc", "metrics", "show", "--json", folder=project))
    assert "average_precision" in shown[""]["data"]["runs/main/metrics.json"]["data"]
    words = ["nbs/03_train.ipynb", "out.ipynb", "-p", "model", "logistic_regression", "-p", "model_folder", "models/lr"]
    output = command("papermill", *words, folder=project)
    assert "unknown parameter" not in output
    assert (
        json.loads((project / "models/lr/card.json").read_text())["parameters"]["train"]["model"]
        == "logistic_regression"
    )


@pytest.mark.thorough
def test_what_the_numbers_are_of_comes_back_with_the_model(project, tmp_path):
    """`dvc checkout` brings of.json with the model; a clone without the cache has the numbers of a commit."""
    for name in ("data", "models"):
        shutil.rmtree(project / name)
    (project / "runs/main/of.json").unlink()
    command("dvc", "checkout", folder=project)
    done = subprocess.run(["fraudnb", "metrics", "--json"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)["test_rows"] > 0
    command("git", "clone", "--quiet", str(project), "clone", folder=tmp_path)
    assert "As committed in" in command("fraudnb", "metrics", folder=tmp_path / "clone")
