"""A run that is killed, whose kernel dies or whose cell fails: what it leaves, and that running again ends
as if nothing had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from project import (
    BIN,
    STEPS,
    command,
    environment,
    kernels,
    make_project,
    paragraph,
    snapshot,
    wait_until,
    write_notebook,
)

from fraudnb.model import ModelError, load_model
from fraudnb.runs import failure

OUTPUTS = {
    "00_download": ["data/main/transactions.parquet"],
    "02_preprocess": ["data/main/train.parquet", "data/main/valid.parquet", "data/main/test.parquet"],
    "03_train": ["models/main/model.onnx", "models/main/card.json", "models/main/model.skops"],
    "04_evaluate": ["models/main/evaluation.json", "runs/main/metrics.json", "runs/main/scores.parquet"],
}


# -- kill -9 of the run, in each step


def make_dvc_project(folder: Path) -> Path:
    """A project under git and DVC, without a remote; nothing is committed."""
    project = make_project(folder, also=("dvc.yaml", ".dvcignore", "fraudnb"))
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    subprocess.run(["git", "init", "-q", str(project)], check=True, env=environment())
    return project


def repro(project: Path) -> subprocess.Popen:
    """A started `dvc repro` of the evaluation and all it needs, in a process group of its own."""
    run = [str(BIN / "dvc"), "repro", "04_evaluate"]
    with open(project / "repro.log", "wb") as log:
        return subprocess.Popen(run, cwd=project, env=environment(), stdout=log, stderr=log, process_group=0)


def killed_during(project: Path, step: str) -> None:
    """`dvc repro`, killed by SIGKILL with all its children but the kernel, while `step` is under way."""
    process = repro(project)
    partial, log = project / f"runs/main/{step}.partial.ipynb", project / "repro.log"
    try:
        wait_until(lambda: process.poll() is not None or partial.exists(), f"{step} to begin", 300)
        assert process.poll() is None, log.read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def whole(path: Path) -> bool:
    """Whether the file at `path` can be read to its end by those who use it."""
    if path.suffix == ".parquet":
        return pq.read_table(path).num_rows > 0
    if path.suffix == ".json":
        return len(json.loads(path.read_text())) > 0
    return path.stat().st_size > 0


def check_what_is_left(project: Path, step: str) -> None:
    """Earlier steps' outputs are complete, this one's complete or absent, later ones absent; no kernel stays behind."""
    wait_until(lambda: not kernels(project), f"the kernel to end after the kill in {step}", 10)
    place = STEPS.index(step)
    for name in STEPS[:place]:
        assert all(whole(project / output) for output in OUTPUTS[name])
        assert (project / f"runs/main/{name}.ipynb").exists()
    assert all(whole(path) for path in map(project.joinpath, OUTPUTS[step]) if path.exists())
    assert not any((project / output).exists() for name in STEPS[place + 1 :] for output in OUTPUTS[name])
    assert not (project / f"runs/main/{step}.ipynb").exists()
    if place > STEPS.index("03_train"):
        load_model(project / "models/main")


@pytest.mark.thorough
@pytest.mark.long
def test_killed_in_every_step_ends_in_the_same_metrics(tmp_path, request):
    """`dvc repro`, killed in each step in turn and run again: every byte that matters is that of an undisturbed run.

    The two runs are in different folders and share nothing but the seed: same seed, same metrics.
    """
    project = make_dvc_project(tmp_path / "project")
    for step in STEPS:
        killed_during(project, step)
        check_what_is_left(project, step)
    last = repro(project)
    assert last.wait(300) == 0, (project / "repro.log").read_text()
    assert not list(project.glob("runs/main/*.partial.ipynb")) and not list(project.glob("*/main/.*.tmp"))
    undisturbed = request.getfixturevalue("small_run")
    for name in ["runs/main/metrics.json", *OUTPUTS["02_preprocess"]]:
        assert (project / name).read_bytes() == (undisturbed / name).read_bytes(), name
    first, second = (pq.read_table(one / "runs/main/scores.parquet") for one in (project, undisturbed))
    assert first.equals(second)


@pytest.mark.thorough
def test_fresh_kernels_give_the_same_metrics(tmp_path, small_run):
    project = shutil.copytree(small_run, tmp_path / "project")
    done = command(project, "run", "03_train", "04_evaluate", "--engine", "fresh")
    assert done.returncode == 0, done.stderr
    for name in ("runs/main/metrics.json", "models/main/model.onnx"):
        assert (project / name).read_bytes() == (small_run / name).read_bytes(), name


# a process that dies just before its second rename, in the middle of putting three files in their places
DIES_BETWEEN_RENAMES = """
import os, signal, sys
from fraudnb.model import save_bundle

rename, renamed = os.replace, []

def dying(source, target):
    if len(renamed) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    renamed.append(rename(source, target))

os.replace = dying
card = {"inputs": ["V1"], "schema": {}}
save_bundle(sys.argv[1], open(sys.argv[2], "rb").read() + b"\\n\\0", card, b"new")
"""


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_killed_while_the_bundle_is_saved(tmp_path, small_run, renamed):
    """Whenever it dies, the bundle is the old one or is refused by its checksum; never a new model with an old card."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.onnx", "model.skops", "card.json"):
        (folder / name).write_bytes((small_run / "models/main" / name).read_bytes())
    model = small_run / "models/main/model.onnx"
    run = [sys.executable, "-P", "-c", DIES_BETWEEN_RENAMES, str(folder), str(model), str(renamed)]
    assert subprocess.run(run, env=environment(), timeout=60).returncode == -signal.SIGKILL
    if renamed == 0:
        assert load_model(folder).card["inputs"] != ["V1"]
    else:
        with pytest.raises(ModelError, match="SHA-256 differs"):
            load_model(folder)


# -- a kernel or a cell that fails


def notebook_project(folder: Path, *cells: str) -> Path:
    """A project whose notebook 90_light has the code `cells`, with an earlier executed copy and an earlier output."""
    project = make_project(folder, parameters="")
    write_notebook(project / "nbs/90_light.ipynb", *cells)
    write_notebook(project / "runs/main/90_light.ipynb", "'earlier'")
    return project


def failed_run(project: Path) -> str:
    """The paragraph of a run of 90_light that must fail by exit code 1, soon, and leave only the failed notebook."""
    before, started = snapshot(project), time.monotonic()
    done = command(project, "run", "90_light")
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert time.monotonic() - started < 60
    failed = project / "runs/main/90_light.failed.ipynb"
    after = snapshot(project)
    assert set(after) - set(before) == {str(failed.relative_to(project))}
    assert {name: after[name] for name in before} == before
    assert not kernels(project)
    message = paragraph(done.stderr)
    assert str(failed) in message and json.loads(failed.read_text())["cells"]
    return message


def test_failing_cell(tmp_path):
    """The cell's number, its source, the error and where to look; what the cells before it printed is there."""
    project = notebook_project(tmp_path / "project", "print('so far')", "number = 0\n1 / number")
    message = failed_run(project)
    assert "cell 2 of 90_light.ipynb failed with ZeroDivisionError: division by zero" in message
    assert "1 / number" in message
    assert "so far" in (project / "runs/main/90_light.failed.ipynb").read_text()


def test_kernel_that_exits(tmp_path):
    """An error, not a hang."""
    project = notebook_project(tmp_path / "project", "import os", "os._exit(3)")
    message = failed_run(project)
    assert "cell 2 of 90_light.ipynb stopped: DeadKernelError" in message and "os._exit(3)" in message


def test_kernel_that_is_killed(tmp_path):
    """The same, and nothing but the paragraph is on standard error."""
    project = notebook_project(tmp_path / "project", "import os", "os.kill(os.getpid(), 9)")
    done = command(project, "run", "90_light")
    assert done.returncode == 1 and "DeadKernelError" in done.stderr
    assert done.stderr.startswith("fraudnb: ") and done.stderr.count("\n") == 1


def test_the_kernel_does_not_talk_on_standard_error(tmp_path):
    """So it is with "[IPKernelApp] ERROR | KeyboardInterrupt caught in kernel.", at the end of one run in four."""
    project = notebook_project(tmp_path / "project", "get_ipython().kernel.log.error('noise')")
    done = command(project, "run", "90_light")
    assert done.returncode == 0 and done.stderr == ""


class CellError(Exception):
    """An error as papermill describes one."""

    cell_index, ename, source = 1, "ValueError", "fit()\n"

    def __init__(self, evalue: str, ename: str = "ValueError") -> None:
        self.evalue, self.ename = evalue, ename


@pytest.mark.parametrize("name", ["ValueError", "InputError"])
def test_message_of_several_lines_is_one_paragraph(name):
    told = failure(Path("nbs/03_train.ipynb"), Path("03_train.failed.ipynb"), CellError("one\n\n  two\n", name))
    assert "\n" not in str(told) and "one" in str(told) and "two" in str(told)


def test_interrupted_run_leaves_no_kernel(tmp_path):
    """Ctrl-C: exit code 130, soon; the earlier copy intact, no kernel left."""
    project = notebook_project(tmp_path / "project", "import time", "open('started', 'w').close()\ntime.sleep(60)")
    earlier = (project / "runs/main/90_light.ipynb").read_bytes()
    run = [str(BIN / "fraudnb"), "run", "90_light"]
    process = subprocess.Popen(
        run, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        wait_until(lambda: process.poll() is not None or (project / "started").exists(), "the cell to run")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, stderr
    assert (project / "runs/main/90_light.ipynb").read_bytes() == earlier
    wait_until(lambda: not kernels(project), "the kernel to end", 10)
