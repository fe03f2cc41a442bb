"""What commands leave behind and whom they talk to: with a new HOME, nothing but what docs/deploy.md names."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import processes_of
from project import BIN, STEPS, environment
from serving import ROW, serving, toy_bundle

# docs/deploy.md, "What is written, and who is asked": below HOME
NAMED = (".cache/matplotlib/", ".ipython/")
FOREIGN = re.compile(r"sa_family=AF_INET6?\b.*?(?:inet_addr\(\"([^\"]+)\"\)|inet_pton\(AF_INET6, \"([^\"]+)\")")


def tracing(calls: Path) -> list[str]:
    """What to put before a command, so that whom it and its children ask is noted in the file `calls`."""
    assert shutil.which("strace"), "this test needs strace: apt-get install strace"
    what = ["--follow-forks", "--daemonize", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg"]
    return ["strace", *what, "-e", "signal=none", "--output", str(calls)]


def asked(calls: Path) -> list[str]:
    """The hosts that were asked, but for this machine."""
    found = [one or other for one, other in FOREIGN.findall(calls.read_text(errors="replace"))]
    return [host for host in found if not host.startswith("127.") and host not in ("::1", "0.0.0.0")]


def left(home: Path) -> list[str]:
    """The files below `home` that the documentation does not name."""
    files = [str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir()]
    return sorted(path for path in files if not path.startswith(NAMED))


def new_home(folder: Path) -> dict[str, str]:
    """An environment with an empty home in `folder`, in which nothing says that caches are elsewhere."""
    (folder / "home").mkdir()
    dropped = ("XDG_", "JUPYTER_", "IPYTHON", "MPL", "DVC_", "ORT_", "JPY_")
    kept = {name: value for name, value in environment().items() if not name.startswith(dropped)}
    return kept | {"HOME": str(folder / "home")}


def traces(project: Path, folder: Path, *words: str) -> tuple[list[str], list[str]]:
    """The files that the command `words` leaves in a new home, and the hosts it asks."""
    env, calls = new_home(folder), folder / "calls"
    runtime = Path(os.environ["XDG_RUNTIME_DIR"]) / "traces"
    runtime.mkdir(mode=0o700, exist_ok=True)
    with open(folder / "said", "wb") as said:
        command = [*tracing(calls), *words]
        done = subprocess.run(
            command, cwd=project, env=env | {"XDG_RUNTIME_DIR": str(runtime)}, stdout=said, stderr=said, timeout=590
        )
    for process in (zygotes := processes_of(runtime)):
        process.kill()
    psutil.wait_procs(zygotes, 10)
    assert done.returncode in (0, 3), (folder / "said").read_text()[-3000:]
    return left(folder / "home"), asked(calls)


def test_scoring_leaves_nothing_and_asks_nobody(tmp_path):
    (tmp_path / "rows.csv").write_text("V1,V2,Amount\n0.5,0,1\n")
    model = toy_bundle(tmp_path / "model")
    words = ("score", "rows.csv", "--model", str(model), "--out", "scored.csv")
    assert traces(tmp_path, tmp_path, str(BIN / "fraudnb"), *words) == ([], [])


def test_serving_leaves_nothing_and_asks_nobody(tmp_path):
    """From the start, over a visitor's page and a transaction, to the end."""
    env, calls = new_home(tmp_path), tmp_path / "calls"
    model = toy_bundle(tmp_path / "model")
    with serving(tmp_path / "log", model, before=tracing(calls), HOME=env["HOME"]) as server:
        server.visit()
        assert server.score([ROW]).status == 200
        assert server.stop() == 0
    assert (left(tmp_path / "home"), asked(calls)) == ([], [])


COMMANDS = {
    "run": ("fraudnb", "run", *STEPS),
    "run_fresh": ("fraudnb", "run", "03_train", "04_evaluate", "--engine", "fresh", "--name", "main"),
    "explore": ("fraudnb", "run", "01_explore"),
    "sweep": ("fraudnb", "sweep", "03_train", "--then", "04_evaluate", "-g", "model=decision_tree,logistic_regression"),
    "metrics": ("fraudnb", "metrics"),
    "diff": ("fraudnb", "diff", "main", "main"),
    "report": ("fraudnb", "report"),
    "drift": ("fraudnb", "drift", "data/main/valid.parquet"),
    "source": ("fraudnb", "source", "03_train", "--out", "source.py"),
    "papermill": ("papermill", "nbs/03_train.ipynb", "out.ipynb"),
    "help": ("fraudnb", "--help"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_leave_nothing_and_ask_nobody(small_run, tmp_path, name):
    project = tmp_path / "project"
    shutil.copytree(small_run, project)
    program, *words = COMMANDS[name]
    assert traces(project, tmp_path, str(BIN / program), *words) == ([], [])


@pytest.mark.thorough
def test_importing_onnxruntime_in_a_notebook_leaves_nothing(small_run, tmp_path):
    """A notebook's own import, before any of ours: the command has said no already."""
    from project import write_notebook

    shutil.copytree(small_run, tmp_path / "project")
    write_notebook(tmp_path / "project/nbs/09_own.ipynb", "import onnxruntime")
    assert traces(tmp_path / "project", tmp_path, str(BIN / "fraudnb"), "run", "09_own") == ([], [])


def test_the_model_binds_no_thread_to_a_processor_it_may_not_use(tmp_path):
    """Told the number of threads, ONNX Runtime lets the system say where they run; in a cpuset it would complain."""
    model = toy_bundle(tmp_path / "model")
    program = "import sys; from fraudnb.model import load_model; session = load_model(sys.argv[1]).session; "
    program += "print(session.get_session_options().intra_op_num_threads)"
    words = ["taskset", "-c", "0", str(BIN / "python"), "-c", program, str(model)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert (done.stdout, done.stderr) == ("1\n", "")
