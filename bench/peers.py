"""The suites of Jupyter's own packages, by a plain kernel and by the warm one: which tests fail, how long they take.

    python bench/peers.py                        # all suites, both kernels, taking turns: an hour on two cores
    python bench/peers.py nbclient papermill     # some of them
    python bench/peers.py --folder DIR           # keep the environment and the sources there for the next time

Each suite is that of the release in requirements.lock, from its sdist on PyPI, in an environment of its own that has
the lock and what the suites ask for. For the warm kernel a kernelspec of fraudnb is called `python3` in a private
JUPYTER_PATH; nothing else differs. What is printed: tests passed, failed and skipped, wall seconds, which tests fail
with the warm kernel alone, and the most processes that kernels are forked from at a time.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from common import BIN, ROOT, markdown, print_heading

from fraudnb.kernels import write_kernelspec
from fraudnb.runs import WARM_MODULES

# by distribution: what pytest is told, in the folder of its sources
SUITES = {
    "jupyter_kernel_test": ["test_ipykernel.py"],
    "nbclient": ["tests"],
    "jupyter_client": ["tests"],
    "ipykernel": [
        f"tests/test_{name}.py"
        for name in ("kernel", "message_spec", "start_kernel", "async", "debugger", "subshells", "kernelspec")
    ],
    "papermill": ["papermill"],
    "jupyter_server": [
        f"tests/{name}"
        for name in (
            "services/sessions/test_api.py",
            "services/kernels/test_api.py",
            "services/kernels/test_execution_state.py",
            "services/kernels/test_cull.py",
        )
    ],
}
SETTING = ("-o", "asyncio_default_fixture_loop_scope=function")  # or pytest-asyncio's warning is an error
KERNEL_TEST = "0.7.0"  # no requirement of ours, so not in the lock
BUILDERS = ("hatchling", "hatch-nodejs-version", "hatch-jupyter-builder", "setuptools", "wheel")
NEEDED = (
    *("flaky", "msgpack", "moto>=5,<5.1", "paramiko", "pygithub", "requests", "testpath", "xmltodict"),
    *("azure-datalake-store", "azure-identity", "azure-storage-blob", "gcsfs"),
    *("pytest-asyncio", "pytest-console-scripts", "pytest-cov", "pytest-env", "pytest-mock", "pytest-timeout"),
    *("pytest-jupyter[client,server]>=0.7", "pytest"),
)

PREPARE = "import os, sys; from fraudnb.kernels import prepare; prepare(sys.argv[1:], sys.executable, os.getcwd())"


def locked_version(name: str) -> str:
    """The version of the distribution `name` in requirements.lock."""
    text = (ROOT / "requirements.lock").read_text()
    found = re.search(rf"^{name.replace('_', '-')}==(\S+)", text, re.MULTILINE)
    return found[1] if found else KERNEL_TEST


def install(folder: Path) -> Path:
    """An environment below `folder` with the lock and what the suites need, if it is not there; its Python."""
    python = folder / "environment/bin/python"
    if not python.exists():
        uv = str(BIN / "uv")
        subprocess.run([uv, "venv", "-q", "--seed", "-p", sys.executable, folder / "environment"], check=True)
        add = [uv, "pip", "install", "-q", "-p", python]
        subprocess.run([*add, "-r", ROOT / "requirements.lock"], check=True)
        subprocess.run([*add, *BUILDERS, *NEEDED, f"jupyter_kernel_test=={KERNEL_TEST}"], check=True)
        # Jupyter finds the provisioner by its entry point
        subprocess.run([*add, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
    return python


def sources(python: Path, name: str, folder: Path) -> Path:
    """The folder with the sources of the distribution `name`, unpacked from its sdist below `folder`."""
    place = folder / f"{name}-{locked_version(name)}"
    if not place.exists():
        options = ["-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-d", folder]
        download = [python, "-m", "pip", "download", *options, f"{name}=={locked_version(name)}"]
        subprocess.run(download, check=True)
        (archive,) = folder.glob(f"{place.name}*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    return place


@dataclass
class Outcome:
    """What a suite came to: tests by their name and how they ended, wall seconds, the most zygotes at a time."""

    tests: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    zygotes: int = 0

    def count(self, *words: str) -> int:
        """How many tests ended in one of `words`."""
        return sum(word in words for word in self.tests.values())


def zygotes_of(place: Path) -> list[psutil.Process]:
    """The processes that kernels are forked from, whose sockets are below `place`."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(place) in word for word in process.cmdline()) and "zygote_main" in str(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return [one for one in found if one.ppid() not in {other.pid for other in found}]


def read_results(file: Path) -> dict[str, str]:
    """Each test of the JUnit XML `file` and whether it is passed, failed, error or skipped."""
    results = {}
    for case in ET.parse(file).iter("testcase") if file.exists() else ():
        ended = {child.tag for child in case} & {"failure", "error", "skipped"}
        name = f"{case.get('classname')}::{case.get('name')}"
        results[name] = {"failure": "failed"}.get(word := min(ended, default="passed"), word)
    return results


def run_suite(python: Path, place: Path, words: Sequence[str], warm: bool, most: float) -> Outcome:
    """Run pytest with `words` in `place`, by the `warm` or the plain kernel, for `most` seconds at most."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="peers-", dir="/tmp") as runtime:
        private = Path(runtime)
        results = private / "results.xml"
        env = os.environ | {"XDG_RUNTIME_DIR": runtime, "PATH": f"{python.parent}:{os.environ['PATH']}"}
        for name in ("PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_PATH", "WARM_KERNELS"):
            env.pop(name, None)
        if warm:
            spec = write_kernelspec("python3", "Python 3 (ipykernel)", WARM_MODULES, private)
            spec.write_text(spec.read_text().replace(sys.executable, str(python)))
            env["JUPYTER_PATH"] = str(private / "share/jupyter")
        command = [
            str(python),
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *SETTING,
            f"--junitxml={results}",
            *words,
        ]
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(2):
                outcome.zygotes = max(outcome.zygotes, len(zygotes_of(private)))

        if warm:  # else the first two kernels would be plain ones
            subprocess.run([python, "-c", PREPARE, *WARM_MODULES], env=env, cwd=place, check=True)
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        with open(place / f"{'warm' if warm else 'plain'}.log", "wb") as log:
            tests = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log, start_new_session=True)
            try:
                tests.wait(most)
            except subprocess.TimeoutExpired:
                os.killpg(tests.pid, signal.SIGKILL)
                tests.wait()
        outcome.seconds = time.perf_counter() - start
        ended.set()
        watcher.join()
        for process in zygotes_of(private):
            process.kill()
        outcome.tests = read_results(results)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--folder", type=Path, help="where environment and sources are kept (default: nowhere)")
    parser.add_argument("--most", type=float, default=1800, help="seconds that a suite may take (default: 1800)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        python = install(folder)
        print_heading()
        rows, totals = [], [0.0, 0.0]
        for name in given.suites or SUITES:
            place = sources(python, name, folder)
            plain, warm = (run_suite(python, place, SUITES[name], kind, given.most) for kind in (False, True))
            bad = ("failed", "error")
            alone = [
                test for test, word in plain.tests.items() if word not in bad and warm.tests.get(test, "error") in bad
            ]
            ends = [f"{one.count('passed')} / {one.count(*bad)} / {one.count('skipped')}" for one in (plain, warm)]
            totals = [totals[0] + plain.seconds, totals[1] + warm.seconds]
            rows.append(
                [f"{name} {locked_version(name)}", *ends, f"{plain.seconds:.0f}", f"{warm.seconds:.0f}",
                 f"{warm.seconds / plain.seconds:.2f}", str(warm.zygotes), ", ".join(alone) or "none"]
            )  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
        rows.append(["all", "", "", *(f"{one:.0f}" for one in totals), f"{totals[1] / totals[0]:.2f}", "", ""])
        head = [
            "suite",
            "plain: passed / failed / skipped",
            "warm",
            "plain s",
            "warm s",
            "ratio",
            "zygotes",
            "only warm",
        ]
        print(markdown(head, rows))


if __name__ == "__main__":
    main()
