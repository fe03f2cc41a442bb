"""Scratch projects: a temporary copy of what the command works on, and what a bad run must fulfil in it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
from conftest import PACKAGE_ROOT, clean_environment

BIN = Path(sys.executable).parent
STEPS = ("00_download", "02_preprocess", "03_train", "04_evaluate")
FEATURES = [f"V{number}" for number in range(1, 29)]

# small, so that a whole pipeline takes seconds; what is not named here has the notebook's default
PARAMETERS = """\
00_download: {source: "sample:20000"}
02_preprocess: {split: temporal}
03_train: {model: lightgbm}
04_evaluate: {resamples: 100}
"""


def make_project(folder: Path, parameters: str = PARAMETERS, also: tuple[str, ...] = ()) -> Path:
    """`folder` as a project of its own: the repository's settings.ini, nbs/ and `also`, and `parameters`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("settings.ini", "nbs", *also):
        source = PACKAGE_ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else:
            shutil.copy(source, folder / name)
    (folder / "params.yaml").write_text(parameters)
    return folder


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: without AWS settings, this interpreter's programs first on the path."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return clean_environment() | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | more


def command(project: Path, *words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`fraudnb` with `words`, run in the folder `project`."""
    return subprocess.run(
        [str(BIN / "fraudnb"), *map(str, words)],
        cwd=project, env=env or environment(), capture_output=True, text=True, encoding="utf-8", timeout=300,
    )  # fmt: skip


def snapshot(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file below `folder`, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def paragraph(stderr: str) -> str:
    """The message on standard error, once it is seen to be one clear paragraph of ours.

    Log lines of the kernel and of nbclient may stand before it; that they do is a test of its own in test_resume.py.
    """
    foreign = ("[IPKernelApp]", "Kernel died while waiting")
    lines = [line for line in stderr.splitlines(keepends=True) if not line.startswith(foreign)]
    message = "".join(lines)
    assert message.startswith("fraudnb: ") and message.endswith("\n"), stderr
    assert "Traceback" not in message and "\n" not in message.strip(), stderr
    assert message.rstrip().endswith((".", ")", "?", "ipynb")), stderr
    return message.strip()


def transactions(rows: int = 300, frauds: int = 12, seed: int = 0) -> pd.DataFrame:
    """A table with the columns of the ULB data, in order of time, its frauds spread evenly."""
    rng = np.random.default_rng(seed)
    features = {name: rng.normal(size=rows).round(6) for name in FEATURES}
    amount, label = rng.exponential(80, rows).round(2), np.zeros(rows, int)
    label[np.linspace(rows // (2 * max(frauds, 1)), rows - 2, frauds).astype(int)] = 1
    return pd.DataFrame({"Time": np.arange(rows) * 60.0, **features, "Amount": amount, "Class": label})


def write_notebook(path: Path, *cells: str, parameters: str = "") -> Path:
    """A notebook of the code `cells` at `path`, after a tagged cell with `parameters` if there are any."""
    kernel = {"display_name": "p", "language": "python", "name": "python3"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    if parameters:
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def printed(notebook: Path) -> str:
    """All that the cells of an executed notebook wrote on standard output."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stdout"]
    return "".join("".join(output["text"]) for output in outputs)


def kernels(project: Path) -> list[psutil.Process]:
    """The kernels that work in `project`, whether or not the process that started them is alive."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            kernel = "ipykernel_launcher" in words or "zygote_main" in words  # started, or forked from a zygote
            if kernel and Path(process.cwd()) == project.resolve():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, FileNotFoundError):
            continue
    return found


def wait_until(true: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Ask `true()` until it is, at most `seconds` long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)


def one_line(text: str) -> str:
    """`text` with every run of white space made one blank."""
    return re.sub(r"\s+", " ", text).strip()
