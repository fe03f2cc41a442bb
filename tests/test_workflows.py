"""The workflows' own shell steps, executed in order in a clean clone, with local servers for what is outside: a bare
git repository for Heroku, an S3 server, an HTTP server for GitHub's API. What a step would have on GitHub (variables,
files to write to, artifacts handed on) it has here, too; an expression that no test gives a value for is an error.

Steps that only repeat this suite are held against the README instead.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import PACKAGE_ROOT, S3Server
from project import BIN, environment
from test_dvc import change_notebook, command, commit, executed, finished  # noqa: F401
from test_github import AUTHOR, HEAD, GitHub, github, serve, zipped  # noqa: F401

from fraudnb.github import MARKER, check_comparison

ROOT = PACKAGE_ROOT
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")  # GitHub's own, for `shell: bash`
# actions that do here what the clone, the fixtures and the test's own environment have done
REPLACED = ("actions/checkout", "actions/setup-python", "actions/cache", "aws-actions/configure-aws-credentials")
BASE = "github.event_name == 'pull_request' && 'HEAD^1' || github.event.before"


def load(name: str) -> dict:
    return yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))


# -- a runner


@dataclass
class Runner:
    """Runs jobs in `project`, their artifacts in `store`; `values` are what expressions stand for."""

    project: Path
    store: Path
    values: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    codes: dict[str, int | None] = field(default_factory=dict)  # of the last job's steps; None: left out
    output: str = ""

    def expand(self, text: object) -> str:
        return re.sub(r"\$\{\{\s*(.*?)\s*\}\}", lambda found: self.values[found[1]], str(text))

    def run(self, workflow: str, job: str, **env: str) -> int:
        """Do the steps of `job`; 0, or the exit code of the first that failed."""
        steps, failed = load(workflow)["jobs"][job]["steps"], 0
        self.codes, self.output = {}, ""
        for step in steps:
            name = step.get("name", step.get("uses", ""))
            if failed and "!cancelled()" not in str(step.get("if", "")):
                self.codes[name] = None
            elif "run" in step:
                self.codes[name] = self.shell(step["run"], {**step.get("env", {}), **env})
                failed = failed or self.codes[name]
            else:
                self.use(step["uses"].partition("@")[0], step.get("with", {}))
        return failed

    def shell(self, text: str, env: Mapping[str, object]) -> int:
        files = {name: str(self.store / name) for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
        paths = os.pathsep.join([str(self.project), environment()["PYTHONPATH"]])
        more = files | {"PYTHONPATH": paths} | dict(self.env)
        more |= {name: self.expand(value) for name, value in env.items()}
        done = subprocess.run(
            [*SHELL, text], cwd=self.project, env=environment() | more, capture_output=True, text=True, timeout=300
        )
        self.output += done.stdout + done.stderr
        return done.returncode

    def use(self, action: str, given: Mapping[str, object]) -> None:
        if action == "actions/upload-artifact":
            target = self.store / "artifacts" / self.expand(given["name"])
            assert given["if-no-files-found"] == "error"
            found = [path for line in str(given["path"]).split() for path in sorted(self.project.glob(line))]
            assert found, f"{given['path']} is not there:\n{self.output[-3000:]}"
            for path in found:
                target.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, target / path.name)
        elif action == "actions/download-artifact":
            for source in sorted((self.store / "artifacts").glob(str(given.get("name", given.get("pattern"))))):
                shutil.copytree(source, self.project / str(given["path"]), dirs_exist_ok=True)
        else:
            assert action in REPLACED, f"{action} has no stand-in"

    @property
    def summary(self) -> str:
        path = self.store / "GITHUB_STEP_SUMMARY"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def revision(self, name: str = "HEAD") -> str:
        return command("git", "rev-parse", name, folder=self.project).strip()


def clean(project: Path) -> None:
    """What a new machine has: nothing that is not in git, but the installed packages and DVC's cache."""
    command("git", "clean", "-xdffq", "-e", ".venv", "-e", ".dvc/cache", folder=project)


@pytest.fixture
def runner(finished, tmp_path) -> Runner:  # noqa: F811
    """A runner with a clean clone on 20,000 sample rows, the packages installed, the DVC cache of an earlier run."""
    project, store = tmp_path / "clone", tmp_path / "store"
    command("git", "clone", "--quiet", str(finished), str(project), folder=tmp_path)
    shutil.copytree(finished / ".dvc/cache", project / ".dvc/cache")
    (project / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (project / ".venv" / name).symlink_to(BIN.parent / name)
    (project / ".venv/installed").touch()
    store.mkdir()
    return Runner(project, store)


def set_value(project: Path, notebook: str, **values: object) -> None:
    """Change the parameters of `notebook`, such as "train", in params.yaml, and commit that."""
    sections = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    sections[notebook] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    commit(project)


# -- what all workflows keep to


@pytest.mark.parametrize("name", WORKFLOWS)
def test_least_privilege(name):
    """No right by default, limits on all jobs, actions by full commit and version, no expression in code."""
    workflow, text = load(name), WORKFLOWS[name].read_text(encoding="utf-8")
    assert workflow["permissions"] == {} and "group" in workflow["concurrency"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] > 0 and "contents" in job["permissions"]
        assert "write" not in job["permissions"].values() or name != "ci"
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
    for line in (line for line in text.splitlines() if "uses:" in line):
        assert re.search(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_ci_needs_no_secrets_and_does_what_the_readme_says():
    text, readme = WORKFLOWS["ci"].read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")
    assert "secrets." not in text and "github.token" not in text
    steps = [step["run"] for job in load("ci")["jobs"].values() for step in job["steps"] if "run" in step]
    assert "make test" in steps and "make restore run" in steps
    assert re.search(r"^make test ", readme, re.MULTILINE) and re.search(r"^make run ", readme, re.MULTILINE)
    rule = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ntest:")[2].split("\n\n")[0]
    assert "pytest" in rule and '-m "not thorough"' in rule
    tested = load("ci")["jobs"]["test"]["strategy"]["matrix"]["python"]
    least = re.search(r"min_python = (.*)", (ROOT / "settings.ini").read_text())[1]
    assert tested == ["3.11", "3.12", "3.13"] and tested[0] == least


def program(name: str) -> str:
    found = shutil.which(name, path=environment()["PATH"])
    assert found, f"{name} is not installed: pip install {name}"
    return found


def test_zizmor_finds_nothing():
    words = ["--offline", "--no-progress", "--min-severity", "low", "--persona", "regular", str(ROOT / ".github")]
    done = subprocess.run([program("zizmor"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_have_githubs_schema():
    check = [program("check-jsonschema"), "--builtin-schema"]
    files = [str(path) for path in WORKFLOWS.values()]
    subprocess.run([*check, "vendor.github-workflows", *files], check=True)
    subprocess.run([*check, "vendor.dependabot", str(ROOT / ".github/dependabot.yml")], check=True)
    forms = [str(path) for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
    subprocess.run([*check, "vendor.github-issue-forms", *forms], check=True)


# -- ci


@pytest.mark.thorough
def test_ci_check_and_wheel(runner):
    """As it is both pass; a notebook committed with its outputs does not."""
    assert runner.shell("make check", {"CI": "true"}) == 0, runner.output
    assert runner.run("ci", "wheel") == 0, runner.output
    (wheel,) = (runner.store / "artifacts/wheel").glob("*.whl")
    assert f"{wheel.name}: " in runner.output and "the command runs" in runner.output

    def as_if_opened(number: int, cell: dict) -> None:
        if cell["cell_type"] == "code":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["4111 1111 1111 1111\n"]}]

    change_notebook(runner.project / "nbs/10_schema.ipynb", as_if_opened)
    commit(runner.project)
    assert runner.shell("make check", {"CI": "true"}) != 0
    assert "4111 1111" in runner.output and "run make check and commit" in runner.output
    # whoever has edited it is told what to commit
    assert runner.shell("make check", {"CI": ""}) == 0
    assert "To be committed together:\n M nbs/10_schema.ipynb\n" in runner.output


@pytest.mark.thorough
def test_make_run_needs_no_git(runner):
    """The repository as a ZIP; and once there is git, DVC is told so."""
    shutil.rmtree(runner.project / ".git")
    assert runner.shell("make restore run", {}) == 0, runner.output
    assert "average_precision" in runner.output
    command("git", "init", "--quiet", folder=runner.project)
    assert runner.shell("make restore", {}) == 0, runner.output
    assert "no_scm" not in (runner.project / ".dvc/config.local").read_text(encoding="utf-8")


@pytest.mark.thorough
@pytest.mark.long
def test_ci_pipeline_then_comment(runner, github):  # noqa: F811
    """A pull request that changes the model: its comparison is posted by the other workflow."""
    set_value(runner.project, "train", model="decision_tree")
    clean(runner.project)
    runner.values = {BASE: "HEAD^1"}
    code = runner.run("ci", "pipeline")
    ran = executed(runner.output)
    assert ran == ["03_train", "04_evaluate"] or "03_train" in ran, runner.output
    comment = (runner.project / "build/comment.md").read_text(encoding="utf-8")
    assert "`03_train` `model` | `lightgbm` | `decision_tree` |" in comment
    assert comment in runner.summary
    assert runner.codes["Run the notebooks on the sample"] == 0
    assert runner.codes["Compare with the base"] == (3 if "The gate refuses" in comment else 0)
    assert runner.codes["Report"] == 0 and code == runner.codes["Compare with the base"], runner.output
    assert (runner.store / "artifacts/report/site/index.html").exists()

    (left,) = (runner.store / "artifacts/comparison").iterdir()
    assert left.name == "comment.json"
    github.artifact = zipped(left.read_bytes())
    outside = {name: value for name, value in github.environment().items() if name != "GITHUB_TOKEN"}
    runner.env, runner.values = outside, {"github.token": "secret-token"}
    assert runner.run("comment", "comment") == 0, runner.output
    assert github.posts == [("POST", "/issues/12/comments")]
    assert github.comments[0]["body"] == f"{MARKER}\n{comment}\nCommit {HEAD[:10]}.\n"


def test_ci_pipeline_that_stops(runner):
    """A broken notebook: the job fails, and what it leaves says in which cell."""

    def break_it(number: int, cell: dict) -> None:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = [*cell["source"], "\n1 / 0\n"] if isinstance(cell["source"], list) else ""

    change_notebook(runner.project / "nbs/04_evaluate.ipynb", break_it)
    command("git", "mv", "nbs", "notebooks", folder=runner.project)
    commit(runner.project)
    command("git", "mv", "notebooks", "nbs", folder=runner.project)
    commit(runner.project)
    clean(runner.project)
    runner.values = {BASE: "0" * 40}  # the first push
    assert runner.run("ci", "pipeline") != 0
    comment = (runner.store / "artifacts/comparison/comment.json").read_text(encoding="utf-8")
    assert check_comparison(json.loads(comment))["verdict"] == "no_head", runner.output
    assert "No result on head" in runner.summary and "ZeroDivisionError" in runner.summary


# -- sweep


@pytest.mark.thorough
@pytest.mark.long
def test_sweep(runner):
    """Two parts on machines of their own, gathered: every run was done once."""
    given = {
        "notebook": "03_train",
        "then": "04_evaluate",
        "grid": "model=decision_tree,logistic_regression class_weight=none",
        "by": "valid_average_precision",
        "parts": "2",
    }
    runner.values = {f"inputs.{name}": value for name, value in given.items()}
    clean(runner.project)
    assert runner.run("sweep", "prepare") == 0, runner.output
    (line,) = (runner.store / "GITHUB_OUTPUT").read_text().splitlines()
    parts = json.loads(line.removeprefix("parts="))
    assert parts == ["1/2", "2/2"]
    for index, part in enumerate(parts):
        clean(runner.project)
        runner.values |= {"matrix.part": part, "strategy.job-index": str(index)}
        assert runner.run("sweep", "part") == 0, runner.output
        assert "1 runs done, 0 failed" in runner.output
    clean(runner.project)
    assert runner.run("sweep", "gather") == 0, runner.output
    assert runner.output.count("done before") == 2 and "2 runs done, 0 failed" in runner.summary
    board = (runner.project / "runs/sweep/leaderboard.csv").read_text()
    assert "decision_tree" in board and "logistic_regression" in board


@pytest.mark.parametrize("parts", ["0", "$(touch x)", "100", ""])
def test_parts_that_are_no_number(runner, parts):
    runner.values = {"inputs.parts": parts}
    assert runner.run("sweep", "prepare") == 2 and "must be a number" in runner.output
    assert not (runner.store / "GITHUB_OUTPUT").exists() and not (runner.project / "x").exists()


# -- the real data, and deployment


@dataclass
class Outside:
    """What a deployment talks to: Heroku's git, S3, and the released application's answers."""

    heroku: Path
    s3: S3Server
    bucket: str
    statuses: list[int]  # of the health check, the last one for ever
    url: str

    @property
    def released(self) -> str:
        words = ["git", "rev-parse", "--verify", "--quiet", "main"]
        return subprocess.run(words, cwd=self.heroku, capture_output=True, text=True).stdout.strip()

    @property
    def deployed(self) -> str:
        """The commit whose model is deployed."""
        return self.s3.get(self.bucket, "model/current").decode().strip()

    def stored(self, commit: str) -> list[str]:
        found = self.s3.client.list_objects_v2(Bucket=self.bucket, Prefix=f"model/{commit}/").get("Contents", [])
        return [one["Key"].removeprefix(f"model/{commit}/") for one in found]


@pytest.fixture
def outside(tmp_path, s3, bucket, finished) -> Iterator[Outside]:  # noqa: F811
    """A bucket with a table, an empty Heroku, an application that answers with 200."""
    heroku = tmp_path / "heroku.git"
    command("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(heroku), folder=tmp_path)
    s3.put(bucket, "transactions.parquet", (finished / "data/main/transactions.parquet").read_bytes())
    statuses = [200]

    def answer(handler: object, body: object) -> tuple[int, dict[str, str], bytes]:
        return (statuses.pop(0) if len(statuses) > 1 else statuses[0]), {}, b"{}"

    server: ThreadingHTTPServer = serve(answer)
    yield Outside(heroku, s3, bucket, statuses, f"http://127.0.0.1:{server.server_port}/health")
    server.shutdown()
    server.server_close()


def point_outside(runner: Runner, outside: Outside) -> None:
    """Let the workflows' variables name what is in `outside`."""
    names = ("DATA_URL", "DVC_URL", "MODEL_URL")
    places = ("transactions.parquet", "dvc", "model")
    runner.values = {
        f"vars.{name}": f"s3://{outside.bucket}/{place}" for name, place in zip(names, places, strict=True)
    }
    runner.values |= {"vars.HEALTH_URL": outside.url, "vars.HEROKU_APP": "x", "secrets.HEROKU_API_KEY": "key"}
    aws = {name: value for name, value in outside.s3.env.items() if name.startswith("AWS_")}
    runner.env = aws | {"HEALTH_SECONDS": "3", "HEALTH_PAUSE": "0.05"}


@pytest.mark.thorough
@pytest.mark.long
def test_real_data_then_deployment(runner, outside):
    """The pipeline on S3; then, on another machine, the first deployment, for which no model is made again."""
    point_outside(runner, outside)
    clean(runner.project)
    assert runner.run("real-data", "pipeline") == 0, runner.output
    assert executed(runner.output)[0] == "00_download" and "03_train" in executed(runner.output)
    assert "average_precision" in runner.summary

    shutil.rmtree(runner.project / ".dvc/cache")
    command("git", "checkout", "--quiet", ".", folder=runner.project)
    first = runner.revision()
    clean(runner.project)
    assert runner.run("deploy", "deploy", HEROKU_GIT_URL=str(outside.heroku)) == 0, runner.output
    assert executed(runner.output) == ["00_download"]
    assert "No model is deployed" in runner.summary and f"Released {first}" in runner.summary
    assert (outside.released, outside.deployed) == (first, first)
    assert {"model/model.onnx", "model/card.json", "scores.parquet", "metrics.json"} <= set(outside.stored(first))


@pytest.fixture
def release(runner, outside, finished) -> Callable[[str], int]:  # noqa: F811
    """After a first deployment, a function that does its steps from the gate on, or the one with a word in its name."""
    point_outside(runner, outside)
    for name in ("models/main", "runs/main"):
        shutil.copytree(finished / name, runner.project / name, dirs_exist_ok=True)

    def act(word: str = "") -> int:
        steps = [step for step in load("deploy")["jobs"]["deploy"]["steps"] if "run" in step]
        for step in steps[2:]:
            env = step["env"] | {"HEROKU_GIT_URL": str(outside.heroku)}
            if word in step["name"] and (code := runner.shell(step["run"], env)):
                return code
        return 0

    assert act() == 0, runner.output
    return act


def other_title(project: Path) -> None:
    """A commit that changes the documentation alone."""
    (project / "README.md").write_text("# Another title\n", encoding="utf-8")
    commit(project)


@pytest.mark.thorough
def test_a_release_that_does_not_answer_is_taken_back(runner, outside, release):
    first = runner.revision()
    other_title(runner.project)
    outside.statuses[:] = [200, 200, 503, *[500] * 200]
    runner.env |= {"HEALTH_SECONDS": "2", "HEALTH_PAUSE": "0.2"}
    second = runner.revision()
    assert release() == 1, runner.output
    assert "**The same model:**" in runner.summary
    assert f"{second} did not answer and was taken back; released is {first} again" in runner.summary
    assert (outside.released, outside.deployed) == (first, first)
    assert outside.stored(second)  # it was there for the release that failed


def test_the_gate_keeps_a_worse_model_from_being_released(runner, outside, release):
    """A model that ranks at random: nothing is pushed or pointed to, and the summary says why."""
    first = runner.revision()
    other_title(runner.project)
    spoil = (
        "import hashlib, json, pathlib, pyarrow.parquet as pq, pyarrow as pa\n"
        "name = 'runs/main/scores.parquet'\n"
        "table = pq.read_table(name)\n"
        "at = table.column_names.index('probability')\n"
        "values = table.column(at).to_pandas().sample(frac=1, random_state=0).to_numpy()\n"
        "pq.write_table(table.set_column(at, table.field(at), pa.array(values)), name)\n"
        "about = pathlib.Path('runs/main/of.json')\n"
        "content = json.loads(about.read_text())\n"
        "content['files']['scores.parquet'] = hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest()\n"
        "about.write_text(json.dumps(content))\n"
    )
    subprocess.run([sys.executable, "-c", spoil], cwd=runner.project, check=True)
    assert release() == 3, runner.output
    assert "**Worse:**" in runner.summary and "**The gate refuses this:**" in runner.summary
    assert (outside.released, outside.deployed) == (first, first)


@pytest.mark.thorough
def test_a_push_that_heroku_refuses_leaves_the_model(runner, outside, release):
    """Heroku builds before it accepts: a build that fails refuses the push."""
    first = runner.revision()
    hook = outside.heroku / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'Push rejected, failed to compile Python app.'\nexit 1\n")
    hook.chmod(0o755)
    other_title(runner.project)
    assert release("Release") == 1
    assert "Heroku has refused" in runner.summary and "failed to compile" in runner.output
    assert (outside.released, outside.deployed) == (first, first)
