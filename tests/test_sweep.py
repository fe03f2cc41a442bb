"""`fraudnb sweep`: real commands, worker processes and kernels on little notebooks; whatever is killed, filled up or
started twice, what is done is never run again and the end is that of an undisturbed sweep.

What needs no process of its own for the command calls it in this one; its workers and kernels are processes as ever.
"""

import csv
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import free_port, made_once
from project import (
    BIN,
    command,
    environment,
    kernels,
    one_line,
    paragraph,
    printed,
    snapshot,
    wait_until,
    write_notebook,
)
from test_bad_input import private

from fraudnb.cli import main
from fraudnb.fetch import list_files
from fraudnb.sweep import Distribution, random_points

CORES = len(os.sched_getaffinity(0))
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# -- little notebooks: each run adds a line to a file, by which executions are counted

SQUARE = """\
side: float = 1
kind: str = "plain"  # one of: plain, big
note: str = ""
settings: dict = {"factor": 1, "offset": 0}
jobs: int = 7
run_folder: str = "runs/main"
"""
SQUARE_CELLS = (
    "import os\nfrom pathlib import Path\nfrom fraudnb.runs import record_numbers",
    "with open('ran', 'a') as log:\n    log.write(f'{side:g}\\n')",
    "assert side >= 0 or Path('mended').exists(), 'a side is not negative'",
    "area = settings['factor'] * side**2 + settings['offset']\nPath(run_folder, 'area.txt').write_text(str(area))",
    "record_numbers({'area': area, 'expected_cost': -area, 'jobs': jobs})\n"
    "record_numbers({'threads': int(os.environ['OMP_NUM_THREADS'])})",
)
SLOW = "number: int = 0\nseconds: float = 0.3\n"
SLOW_CELLS = (
    "import time\nfrom fraudnb.runs import record_numbers",
    "with open('ran', 'a') as log:\n    log.write(f'{number}\\n')",
    "time.sleep(seconds)",
    "record_numbers({'area': number**2})",
)


def make_little(folder: Path) -> Path:
    """A project with the notebooks 30_square, 31_double (which goes on from 30's outputs), 32_slow and 33_plain."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.ini").touch()
    write_notebook(folder / "nbs/30_square.ipynb", *SQUARE_CELLS, parameters=SQUARE)
    double = "record_numbers({'double': 2 * float(Path(run_folder, 'area.txt').read_text())})"
    write_notebook(folder / "nbs/31_double.ipynb", SQUARE_CELLS[0], double, parameters="run_folder: str = 'runs/main'")
    write_notebook(folder / "nbs/32_slow.ipynb", *SLOW_CELLS, parameters=SLOW)
    write_notebook(folder / "nbs/33_plain.ipynb", "1")
    return folder


@pytest.fixture
def project(tmp_path) -> Path:
    return make_little(tmp_path / "project")


def sweep(project: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """What `fraudnb sweep` with `words` does in the folder `project`: the command's own function, in this process."""
    out, err, env = io.StringIO(), io.StringIO(), environment() | dict.fromkeys(THREADS, "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        for name in set(os.environ) - set(env):
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            main(["sweep", *map(str, words)])
    return subprocess.CompletedProcess(words, stop.value.code, out.getvalue(), err.getvalue())


@contextmanager
def started(project: Path, *words: object, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A running `fraudnb sweep` with `words`, in a process group of its own, with its output in `project`/log."""
    with open(project / "log", "wb") as log:
        run = [str(BIN / "fraudnb"), "sweep", *map(str, words)]
        process = subprocess.Popen(
            run,
            cwd=project,
            env=env or environment(),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ran(project: Path) -> Counter[str]:
    """How often each run was begun, by what it wrote in the file `ran`."""
    path = project / "ran"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def records(folder: Path) -> dict[str, dict]:
    """The records of the runs in the sweep's `folder`, by run."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))}


def statuses(folder: Path, name: str) -> dict:
    """The status of each run in the sweep's `folder`, by its value of the parameter `name`."""
    return {record["point"][name]: record["status"] for record in records(folder).values()}


def board(folder: Path) -> list[dict[str, str]]:
    """The rows of the leaderboard."""
    with open(folder / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))


def ranked(folder: Path, name: str) -> list[float]:
    """The column `name` of the leaderboard."""
    return [float(row[name]) for row in board(folder)]


def numbered(count: int) -> str:
    return f"number={','.join(map(str, range(count)))}"


# -- a grid, and what follows from it

GRID = ("30_square", "--then", "31_double", "-g", "side=1,2", "-g", "kind=plain,big", "-g", "note=[/a]")


SETTINGS = ("-p", "settings", "{factor: 2, offset: 1}")


@pytest.fixture(scope="session")
def swept(tmp_path_factory, worker_id) -> Path:
    """A project in which a grid of four was swept by the command; to be read or copied."""

    def make(folder: Path) -> None:
        done = command(make_little(folder), "sweep", *GRID, *SETTINGS, "--by", "double")
        assert done.returncode == 0, done.stderr
        (folder / "printed").write_text(done.stdout)
        (folder / "told").write_text(done.stderr)

    return made_once(tmp_path_factory, worker_id, "swept", make)


@pytest.fixture
def again(swept, tmp_path) -> Path:
    """A copy of the swept project, in which the grid may be swept again."""
    return shutil.copytree(swept, tmp_path / "project")


def test_each_run_has_a_folder(swept):
    """Executed notebooks, outputs, numbers, and a record that says what was run, how it ended and how long it took."""
    found = records(swept / "runs/sweep")
    assert len(found) == 4 and ran(swept) == {"1": 2, "2": 2}
    for key, record in found.items():
        folder, point = swept / "runs/sweep" / key, record["point"]
        area = 2 * point["side"] ** 2 + 1
        assert json.loads((folder / "metrics.json").read_text()) == record["metrics"]
        assert (record["metrics"]["area"], record["metrics"]["double"]) == (area, 2 * area)
        assert (folder / "area.txt").read_text() == str(area)
        assert (record["key"], record["status"], record["folder"]) == (key, "done", str(folder))
        assert [Path(notebook).stem for notebook, _ in record["steps"]] == ["30_square", "31_double"]
        assert record["steps"][0][1] == {**point, "settings": {"factor": 2, "offset": 1}}
        assert record["seconds"]["all"] >= record["seconds"]["30_square"] + record["seconds"]["31_double"] > 0
        for name in ("30_square", "31_double"):
            cells = json.loads((folder / f"{name}.ipynb").read_text())["cells"]
            assert str(folder) in "".join("".join(cell["source"]) for cell in cells)  # the run's own folder
    assert not list((swept / "runs").rglob("*.partial.ipynb")) and not kernels(swept)


def test_leaderboard_as_file_and_table(swept):
    """The best first, in the file and as printed; texts are shown as they are; a line was told of each run."""
    rows = board(swept / "runs/sweep")
    assert [(row["side"], row["double"]) for row in rows] == [("2.0", "18.0")] * 2 + [("1.0", "6.0")] * 2
    assert {row["kind"] for row in rows[:2]} == {"plain", "big"} and {row["note"] for row in rows} == {"[/a]"}
    table = (swept / "printed").read_text()
    places = [table.index(row["run"]) for row in rows]
    assert places == sorted(places) and table.count("[/a]") == 4
    assert "double has no intervals" in table and "4 runs done, 0 failed" in table
    told = (swept / "told").read_text().splitlines()
    assert len(told) == 4 and sorted(line.split()[0] for line in told) == [f"[{number}/4]" for number in range(1, 5)]


@pytest.mark.thorough
def test_threads_are_shared_out(swept):
    """Workers times threads are no more than the cores, and the parameter `jobs` says the same."""
    for record in records(swept / "runs/sweep").values():
        assert record["metrics"]["threads"] == record["metrics"]["jobs"] == 1  # as many workers as cores


@pytest.mark.thorough
def test_one_worker_has_all_threads(project):
    done = command(project, "sweep", "30_square", "-g", "side=1", "--workers", 1, "--by", "area", "--seed", 3)
    assert done.returncode == 0, done.stderr
    (record,) = records(project / "runs/sweep").values()
    assert record["metrics"]["threads"] == record["metrics"]["jobs"] == CORES
    # what is given counts
    assert sweep(project, "30_square", "-g", "side=2", "-p", "jobs", 3, "--by", "area").returncode == 0
    assert ranked(project / "runs/sweep", "area") == [4, 1]
    assert {record["metrics"]["jobs"] for record in records(project / "runs/sweep").values()} == {CORES, 3}


def test_the_same_command_runs_nothing(again):
    """Nor does one that gives a default's value, or sweeps a part of what was swept; order and metric may change."""
    before = snapshot(again / "runs") | {"sweep/.lock": ""}
    done = sweep(again, *GRID, *SETTINGS, "--by", "double")
    assert done.returncode == 0 and done.stderr.count("done before") == 4
    assert snapshot(again / "runs") | {"sweep/.lock": ""} == before
    done = sweep(again, *GRID, *SETTINGS, "-p", "jobs", 2, "--by", "expected_cost")  # smaller is better
    assert done.returncode == 0 and ranked(again / "runs/sweep", "side") == [2] * 2 + [1] * 2
    done = sweep(again, *GRID[:5], "-g", "note=[/a]", "-p", "kind", "plain", *SETTINGS, "--by", "double")
    assert done.returncode == 0 and done.stderr.count("done before") == 2 and len(board(again / "runs/sweep")) == 4
    assert sum(ran(again).values()) == 4


def test_metric_that_no_run_has(again):
    done = sweep(again, *GRID, *SETTINGS, "--by", "duoble")
    assert done.returncode == 2 and done.stdout == ""
    message = paragraph(done.stderr.splitlines(keepends=True)[-1])
    assert "No run has the metric 'duoble'. Did you mean 'double'?" in message and "area" in message
    assert sum(ran(again).values()) == 4


@pytest.mark.thorough
def test_parts_of_a_sweep_put_together_are_the_whole(project, tmp_path):
    """Each part runs its own; with all folders in one place the whole sweep runs nothing and ranks everything."""
    grid = ("30_square", "-g", "side=1,2,3", "--by", "area")
    for part in (1, 2, 3, 4):
        done = sweep(project, *grid, "--shard", f"{part}/4", "--name", f"part{part}")
        assert done.returncode == 0, done.stderr
        assert ("more parts than runs" in done.stdout) == (part == 4)
        for folder in (project / f"runs/part{part}").glob("*/"):
            shutil.copytree(folder, project / "runs/sweep" / folder.name)
    assert ran(project) == {"1": 1, "2": 1, "3": 1}
    done = sweep(project, *grid)
    assert done.returncode == 0 and done.stderr.count("done before") == 3, done.stderr
    assert ran(project) == {"1": 1, "2": 1, "3": 1} and ranked(project / "runs/sweep", "area") == [9, 4, 1]


@pytest.mark.parametrize("words", [("--shard", "5/4"), ("--shard", "1"), ("--shard", "1/2", "--sampler", "tpe")])
def test_parts_that_there_are_not(project, words):
    done = sweep(project, "30_square", "-g", "side=1,2", *words)
    assert done.returncode == 2 and "fraudnb: --s" in done.stderr, done.stderr


def test_default_given_is_the_same_run(project):
    """Also a float's default that is written as a whole number."""
    assert sweep(project, "30_square", "-g", "side=1,2", "--by", "area").returncode == 0
    given = ("-p", "kind", "plain", "-p", "settings", "{offset: 0, factor: 1}", "-p", "run_folder", "elsewhere")
    done = sweep(project, "30_square", "-g", "side=1.0,2", *given, "--by", "area")
    assert done.returncode == 0 and ran(project) == {"1": 1, "2": 1} and len(records(project / "runs/sweep")) == 2
    assert sweep(project, "30_square", "-g", "kind=plain", "--by", "area").returncode == 0
    assert ran(project) == {"1": 1, "2": 1}


def test_progress_on_a_terminal(again):
    """A bar, which shows texts as they are."""
    master, slave = pty.openpty()
    run = [str(BIN / "fraudnb"), "sweep", *GRID, *SETTINGS, "--by", "double"]
    process = subprocess.Popen(run, cwd=again, env=environment(TERM="xterm", COLUMNS="150"), stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(master)
    assert process.wait(60) == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "4/4" in text and "best double 18: side 2.0" in text and "note [/a]" in text and "Traceback" not in text


# -- what is varied, and how


def test_values_from_files(project):
    """params.yaml gives what is not varied; a SWEEP.yaml gives lists, distributions, and values in its place."""
    (project / "params.yaml").write_text("30_square: {kind: big, settings: {factor: 5, offset: 0}}\n")
    assert sweep(project, "30_square", "-g", "side=2", "--by", "area", "--name", "a").returncode == 0
    (record,) = records(project / "runs/a").values()
    assert record["steps"][0][1]["kind"] == "big" and record["metrics"]["area"] == 20
    (project / "SWEEP.yaml").write_text(
        "space: {side: {uniform: [1, 2]}, kind: [plain]}\nparameters: {30_square: {settings: {factor: 0, offset: 7}}}\n"
    )
    words = ("-f", "SWEEP.yaml", "--sampler", "random", "--max-runs", 2, "--by", "area", "--name", "b")
    assert sweep(project, "30_square", *words).returncode == 0
    found = list(records(project / "runs/b").values())
    assert len(found) == 2 and {record["metrics"]["area"] for record in found} == {7}
    assert all(1 <= record["point"]["side"] <= 3 and record["point"]["kind"] == "plain" for record in found)


def test_random_is_what_the_seed_says(project):
    """The same runs in another sweep, of which the first are those of a longer one."""
    words = ("30_square", "-g", "side=loguniform(0.1, 10)", "-g", "kind=plain,big", "--sampler", "random")
    for name, runs in (("a", 2), ("b", 3)):
        done = sweep(project, *words, "--max-runs", runs, "--seed", 5, "--name", name, "--by", "area")
        assert done.returncode == 0, done.stderr
    first, second = (records(project / "runs" / name) for name in "ab")
    assert first.keys() < second.keys() and len(second) == 3
    space = {"side": Distribution("loguniform", (0.1, 10.0)), "kind": ["plain", "big"]}
    expected = random_points(space, 3, seed=5)
    assert sorted(map(str, expected)) == sorted(str(record["point"]) for record in second.values())
    assert random_points(space, 3, seed=6) != expected


def test_tpe_goes_on(project):
    """As many distinct runs as asked for; none by a second start, the rest by a larger number."""
    words = ("30_square", "-g", "side=uniform(0, 3)", "-g", "kind=plain,big", "--sampler", "tpe", "--by", "area")
    for most, repeated in ((3, 0), (3, 3), (5, 3)):
        done = sweep(project, *words, "--max-runs", most)
        assert done.returncode == 0 and done.stderr.count("done before") == repeated, done.stderr
        assert len(records(project / "runs/sweep")) == sum(ran(project).values()) == most
    # what lies outside of a new space, or had other fixed values, is no obstacle and does not count
    other = ("30_square", "-g", "side=uniform(5, 1)", "--sampler", "tpe", "--by", "area", "--max-runs", 1)
    assert sweep(project, *other).returncode == 0 and sum(ran(project).values()) == 6
    assert sweep(project, *other, "-p", "kind", "big").returncode == 0 and sum(ran(project).values()) == 7


@pytest.mark.thorough
def test_tpe_ends_in_a_small_space(project):
    done = sweep(project, "30_square", "-g", "kind=plain,big", "--sampler", "tpe", "--by", "area", "--max-runs", 5)
    assert done.returncode == 0 and ran(project) == {"1": 2}, done.stderr


def test_entries_of_a_dictionary(project):
    """Others of its entries stay as they are by default or by -p; 1e-1 is a number."""
    words = ("-g", "settings.factor=2,1e-1", "-g", "settings.offset=1", "--by", "area")
    assert sweep(project, "30_square", *words).returncode == 0
    assert ranked(project / "runs/sweep", "area") == [3, 1.1]
    words = ("-g", "settings.factor=3", "-p", "settings", "{offset: 4}", "--by", "area", "--name", "b")
    assert sweep(project, "30_square", *words).returncode == 0
    assert ranked(project / "runs/b", "area") == [7]
    words = ("-g", "settings.factor=3", "--by", "area", "--name", "c")
    assert sweep(project, "30_square", *words).returncode == 0
    assert ranked(project / "runs/c", "area") == [3]


# -- wrong usage: nothing is executed, nothing written

TPE = ("--sampler", "tpe")
REFUSED = {
    "misspelt parameter": (("30_square", "-g", "sied=1,2"), "Did you mean 'side'?"),
    "misspelt fixed parameter": (("30_square", "-g", "side=1", "-p", "kidn", "big"), "Did you mean 'kind'?"),
    "misspelt notebook": (("30_sqare", "-g", "side=1"), "Did you mean '30_square'?"),
    "misspelt next notebook": (("30_square", "-g", "side=1", "--then", "31_duoble"), "Did you mean '31_double'?"),
    "misspelt distribution": (("30_square", "-g", "side=unifrom(0, 1)"), "Did you mean 'uniform'?"),
    "misspelt choice": (("30_square", "-g", "kind=plain,bgi"), "Did you mean 'big'?"),
    "text for a number": (("30_square", "-g", "side=1,many"), "side expects float, not 'many'"),
    "fixed text for a number": (("30_square", "-g", "kind=big", "-p", "side", "many"), "expects float, not 'many'"),
    "true for a number": (("30_square", "-g", "side=true"), "expects float, not True (bool)"),
    "number for a dictionary": (("30_square", "-g", "settings=1"), "settings of 30_square expects dict"),
    "entry of a number": (("30_square", "-g", "side.x=1"), "side of 30_square is no dictionary"),
    "no value": (("30_square", "-g", "side"), "-g side has no value: write -g NAME=V1,V2"),
    "empty": (("30_square", "-g", "side="), "side has no values"),
    "bracket": (("30_square", "-g", "settings={a: 1"), "cannot be read as values between commas"),
    "given twice": (("30_square", "-g", "side=1", "-g", "side=2"), "-g side=V1,V2"),
    "varied and fixed": (("30_square", "-g", "side=1,2", "-p", "side", "3"), "leave one of them out"),
    "nothing varied": (("30_square",), "Nothing is varied: give -g NAME=V1,V2"),
    "folder varied": (("30_square", "-g", "run_folder=a,b"), "run_folder cannot be varied"),
    "untagged notebook": (("33_plain", "-g", "side=1"), "33_plain has no cell tagged 'parameters'"),
    "distribution in a grid": (("30_square", "-g", "side=uniform(0, 1)"), "use --sampler random or tpe"),
    "scale of a distribution": (
        ("30_square", "-g", "side=uniform(0, -1)", *TPE),
        "'uniform(0.0, -1.0)' is no distribution",
    ),
    "too few arguments": (("30_square", "-g", "side=loguniform(1)", *TPE), "is no distribution"),
    "distribution for a whole number": (("32_slow", "-g", "number=uniform(0.1, 9)", *TPE), "number of 32_slow expects"),
    "distribution tpe does not know": (("30_square", "-g", "side=norm(5, 1)", *TPE), "use --sampler random"),
    "sampler": (("30_square", "-g", "side=1", "--sampler", "tpee"), "'tpee' is not one of"),
    "name": (("30_square", "-g", "side=1", "--name", "a/b"), "'a/b' cannot be a run's name"),
    "place": (("30_square", "-g", "side=1", "--name", "gs://b/c"), "is of no known kind"),
    "scheduler": (("30_square", "-g", "side=1", "--scheduler", "10.0.0.1"), "tcp://HOST:PORT"),
    "missing file": (("30_square", "-f", "none.yaml"), "There is no file none.yaml"),
}


def refused(project: Path, *words: object) -> str:
    """The paragraph with which `fraudnb sweep` refuses `words` by exit code 2, having written nothing."""
    before = snapshot(project)
    done = sweep(project, *words)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert snapshot(project) == before and not (project / "ran").exists()
    return paragraph(done.stderr)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(project, name):
    words, expected = REFUSED[name]
    assert expected in refused(project, *words, "--by", "area")
    assert not (project / "runs").exists()


BAD_FILES = {
    "another section": ("spaces: {side: [1]}", "must have a section 'space'"),
    "a list": ("[1, 2]", "must have a section 'space'"),
    "space without names": ("space: [side]", "'space' of SWEEP.yaml must have names"),
    "bad YAML": ("space: {side: [1", "cannot be read as YAML"),
    "misspelt": ("space: {sied: [1]}", "Did you mean 'side'?"),
    "number as a name": ("space: {1: [2]}", "30_square has no parameter '1'"),
    "distribution with text": ("space: {side: {uniform: [a, b]}}", "a distribution like {uniform: [0, 1]}"),
    "two distributions": ("space: {side: {uniform: [1, 2], norm: [0]}}", "a distribution like {uniform: [0, 1]}"),
    "number as a distribution": ("space: {side: {1: [2]}}", "scipy.stats has no distribution '1'"),
    "null": ("space: {side: }", "expects float, not None"),
    "empty list": ("space: {side: []}", "side has no values"),
    "date": ("space: {settings.since: [2024-01-01]}", "Quote a date"),
    "no section": ("space: {side: [1]}\nparameters: {kind: big}", "one section per notebook"),
    "misspelt section": ("space: {side: [1]}\nparameters: {30_sqare: {kind: big}}", "Did you mean '30_square'?"),
    "misspelt value": ("space: {side: [1]}\nparameters: {30_square: {kind: bgi}}", "Did you mean 'big'?"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(project, name):
    text, expected = BAD_FILES[name]
    (project / "SWEEP.yaml").write_text(text)
    assert expected in refused(project, "30_square", "-f", "SWEEP.yaml", "--by", "area")


@pytest.mark.parametrize("cell", ["side = 1 + x", "side, kind = 1, 2", "side: float", "side = ("])
def test_parameters_that_are_not_written_out(project, cell):
    write_notebook(project / "nbs/34_odd.ipynb", "side", parameters=cell)
    assert "values that are written out" in refused(project, "34_odd", "-g", "side=1")


# -- runs that fail


def test_failing_run(project):
    """It is recorded with its cell, does not stop the others, and is all that the same command tries again."""
    words = ("30_square", "-g", "side=1,-3,2", "--by", "area")
    done = command(project, "sweep", *words)
    assert done.returncode == 0 and "2 runs done, 1 failed" in done.stdout
    assert statuses(project / "runs/sweep", "side") == {1: "done", -3: "failed", 2: "done"}
    (failed,) = [record for record in records(project / "runs/sweep").values() if record["status"] == "failed"]
    assert 'failed with AssertionError: a side is not negative. The cell: "assert side >= 0' in failed["error"]
    assert done.stderr.count(failed["error"]) == 1 and "Traceback" not in done.stderr
    left = Path(failed["folder"])
    assert (left / "30_square.failed.ipynb").exists() and not (left / "metrics.json").exists()
    assert ranked(project / "runs/sweep", "side") == [2, 1]
    assert sweep(project, *words).returncode == 0 and ran(project) == {"1": 1, "-3": 2, "2": 1}
    (project / "mended").touch()
    done = sweep(project, *words)
    assert done.returncode == 0 and "3 runs done, 0 failed" in done.stdout
    assert ran(project) == {"1": 1, "-3": 3, "2": 1} and ranked(project / "runs/sweep", "area")[0] == 9
    assert not (left / "30_square.failed.ipynb").exists()


def test_all_runs_fail(project):
    done = sweep(project, "30_square", "-g", "side=-1,-2", "--by", "area")
    assert done.returncode == 1 and done.stdout == ""
    assert "No run is done, 2 failed." in paragraph(done.stderr.splitlines(keepends=True)[-1])


def test_notebook_that_records_nothing(project):
    """What to do is said; the runs are done, and need not be run again when they have been evaluated."""
    write_notebook(project / "nbs/34_mute.ipynb", "side", parameters="side: int = 1")
    done = sweep(project, "34_mute", "-g", "side=1")
    message = paragraph(done.stderr.splitlines(keepends=True)[-1])
    assert done.returncode == 2 and "record_numbers({'valid_average_precision': ...})" in message
    assert "--then 04_evaluate" in message


def test_metric_that_some_runs_have(project):
    """They come first."""
    cell = "from fraudnb.runs import record_numbers\nrecord_numbers({'valid_x': side} if side < 3 else {'other': 0})"
    write_notebook(project / "nbs/34_some.ipynb", cell, parameters="side: int = 1")
    done = sweep(project, "34_some", "-g", "side=3,1,2", "--by", "valid_x")
    assert done.returncode == 0, done.stderr
    assert ranked(project / "runs/sweep", "side") == [2, 1, 3]


def test_cells_that_are_no_python(project):
    """Shell cells work, and an error in syntax is a run that failed."""
    parameters = "code: str = 'good'\n"
    cells = ("%%bash\nls -l | head -1", "import sys\n%time 1", "from fraudnb.runs import record_numbers", "(")
    write_notebook(project / "nbs/34_shell.ipynb", *cells[:3], "record_numbers({'area': 1})", parameters=parameters)
    write_notebook(project / "nbs/35_syntax.ipynb", *cells, parameters=parameters)
    assert sweep(project, "34_shell", "-g", "code=good", "--by", "area").returncode == 0
    done = sweep(project, "35_syntax", "-g", "code=bad", "--by", "area")
    assert done.returncode == 1 and "SyntaxError" in done.stderr and "Traceback" not in done.stderr


# -- limits of a run

LIMITED = {
    "fine": "pass",
    "endless": "while True:\n    pass",
    "memory": "held = []\nwhile True:\n    held.append(bytearray(200_000_000))",
    "prints": "for _ in range(100):\n    print('x' * 1_000_000)",
    "dies": "import os\nos.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("engine", ["warm", "fresh"])
def test_limits(project, engine):
    """Runs that never end, take all memory, print without end or kill themselves: each names its cell, none harms."""
    cells = [
        f"if what == {name!r}:\n" + "\n".join(f"    {line}" for line in code.splitlines())
        for name, code in LIMITED.items()
    ]
    last = "from fraudnb.runs import record_numbers\nrecord_numbers({'area': 1})"
    write_notebook(project / "nbs/34_limits.ipynb", *cells, last, parameters="what: str = 'fine'")
    names = list(LIMITED) if engine == "warm" else ["fine", "memory"]
    memory = 3 if engine == "warm" else 1.2  # what is printed waits in memory, too
    words = ("34_limits", "-g", f"what={','.join(names)}", "--time-limit", 8, "--memory-limit", memory, "--by", "area")
    before = time.monotonic()
    done = sweep(project, *words, "--engine", engine)
    assert done.returncode == 0 and time.monotonic() - before < 60, done.stderr
    found = {record["point"]["what"]: record for record in records(project / "runs/sweep").values()}
    ends = {name: record["status"] for name, record in found.items()}
    assert ends == {name: "done" if name in ("fine", "prints") else "failed" for name in names}
    errors = {name: record["error"] for name, record in found.items() if "error" in record}
    assert "cell 5 of 34_limits.ipynb failed with MemoryError" in errors["memory"]
    if engine == "warm":
        assert "cell 4 of 34_limits.ipynb stopped: CellTimeoutError" in errors["endless"]
        assert "cell 7 of 34_limits.ipynb stopped: DeadKernelError: Kernel died" in errors["dies"]
        assert all(f"what == '{name}'" in error for name, error in errors.items())
        notebook = Path(found["prints"]["folder"]) / "34_limits.ipynb"
        assert notebook.stat().st_size < 1_200_000 and "the middle is left out" in printed(notebook)
    assert not kernels(project)


# -- inputs

READER = 'data_folder: str = "data/main"\nmodel_folder: str = "models/main"\nfactor: int = 1\nlog: str = "ran"'
READER_CELLS = (
    "from pathlib import Path\nfrom fraudnb.runs import project_path, record_numbers",
    "with open(log, 'a') as file:\n    file.write(f'{factor}\\n')",
    "data, model = project_path(data_folder), project_path(model_folder)\n"
    "value = int((data / 'value.txt').read_text())\nweight = int((model / 'deep/weight.txt').read_text())",
    "(model / 'new.txt').write_text('new')\n(model / 'deep/weight.txt').write_text('0')\n"
    "with open(data / 'value.txt', 'r+') as file:\n    file.write('0')",
    "record_numbers({'area': factor * value * weight})",
)


def write_inputs(project: Path) -> None:
    """Inputs, and the notebook 36_reader that reads them and writes over them."""
    write_notebook(project / "nbs/36_reader.ipynb", *READER_CELLS, parameters=READER)
    for name, text in {"data/main/value.txt": "7", "models/main/deep/weight.txt": "2"}.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)


def test_inputs_stay_as_they_are(project):
    """Whatever a notebook writes into its folders is the run's own, and the next run starts from what was there."""
    write_inputs(project)
    before = snapshot(project / "data"), snapshot(project / "models")
    done = sweep(project, "36_reader", "-g", "factor=1,2,3", "--by", "area", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert (snapshot(project / "data"), snapshot(project / "models")) == before
    assert ranked(project / "runs/sweep", "area") == [42, 28, 14]
    for record in records(project / "runs/sweep").values():
        folder = Path(record["folder"])
        assert {path.name for path in (folder / "model").rglob("*.txt")} == {"new.txt", "weight.txt"}
        assert (folder / "data/value.txt").read_text() == "0"


@pytest.mark.thorough
def test_changed_inputs_and_code(project):
    """A finished run counts as not run when data, a model or a cell changes; not when a remark or an output does."""
    write_inputs(project)
    notebook, words = project / "nbs/36_reader.ipynb", ("36_reader", "-g", "factor=1", "--by", "area")

    def area_and_executions() -> tuple[float, int]:
        done = sweep(project, *words)
        assert done.returncode == 0, done.stderr
        (area,) = ranked(project / "runs/sweep", "area")
        return area, sum(ran(project).values())

    assert area_and_executions() == (14, 1)
    (project / "data/main/value.txt").write_text("8")
    assert area_and_executions() == (16, 2)
    (project / "models/main/deep/weight.txt").write_text("3")
    assert area_and_executions() == (24, 3)
    write_notebook(notebook, *READER_CELLS[:-1], f"# a remark\n{READER_CELLS[-1]}", parameters=READER)
    assert area_and_executions() == (24, 3)
    write_notebook(notebook, *READER_CELLS[:-1], "record_numbers({'area': 5})", parameters=READER)
    assert area_and_executions() == (5, 4)


def test_missing_inputs(project):
    write_inputs(project)
    shutil.rmtree(project / "data")
    message = refused(project, "36_reader", "-g", "factor=1", "--by", "area")
    assert f"There are no files in {project / 'data/main'}" in message and "`fraudnb run` makes them" in message


@pytest.mark.thorough
def test_a_run_begins_in_an_empty_folder(project):
    """What an earlier try has left there, killed or failed, is gone."""
    cell = "from pathlib import Path\nfrom fraudnb.runs import record_numbers\nleft = Path(run_folder, 'left')"
    last = "record_numbers({'area': left.exists()})\nleft.touch()\nassert not Path('broken').exists()"
    write_notebook(project / "nbs/34_left.ipynb", cell, last, parameters="run_folder: str = ''\nside: int = 1")
    (project / "broken").touch()
    words = ("34_left", "-g", "side=1", "--by", "area")
    assert sweep(project, *words).returncode == 1
    (project / "broken").unlink()
    assert sweep(project, *words).returncode == 0
    assert ranked(project / "runs/sweep", "area")[0] == 0


# -- killed and interrupted


def slow(count: int, seconds: float = 0.3) -> tuple[str, ...]:
    return ("32_slow", "-g", numbered(count), "-p", "seconds", str(seconds), "--by", "area", "--workers", "2")


def done_runs(project: Path) -> set[int]:
    """The numbers of the runs of 32_slow that are done."""
    found = set()
    for path in (project / "runs/sweep").glob("*/run.json"):
        record = json.loads(path.read_text())  # written in one piece
        if record["status"] == "done":
            found.add(record["point"]["number"])
    return found


def check_finished(project: Path, count: int) -> None:
    """The leaderboard is that of `count` undisturbed runs of 32_slow."""
    rows = board(project / "runs/sweep")
    assert [(int(row["number"]), float(row["area"])) for row in rows] == [(n, n**2) for n in reversed(range(count))]
    for record in records(project / "runs/sweep").values():
        folder = Path(record["folder"])
        assert json.loads((folder / "metrics.json").read_text()) == record["metrics"]
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "32_slow.ipynb", "metrics.json", "run.json"]


def group(leader: int) -> list[psutil.Process]:
    """The living processes of the process group `leader`."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_killed_sweep_goes_on(project):
    """`kill -9` of the command alone: its workers and kernels end by themselves, and what was done is not repeated."""
    with started(project, *slow(6)) as process:
        wait_until(lambda: len(done_runs(project)) >= 2, "two runs to be done")
        process.kill()
        process.wait()
        wait_until(lambda: not group(process.pid) and not kernels(project), "workers and kernels to end", 15)
    before = done_runs(project)
    assert 2 <= len(before) < 6
    done = command(project, "sweep", *slow(6))
    assert done.returncode == 0 and done.stderr.count("done before") == len(before), done.stderr
    assert {number for number, times in ran(project).items() if times > 1}.isdisjoint(map(str, before))
    check_finished(project, 6)


@pytest.mark.parametrize("when", ["starting", "running"])
def test_ctrl_c(project, when):
    """130, "Stopped." and nothing else, soon, with nobody left; meanwhile nobody else may sweep there."""
    with started(project, *slow(4, 1.0)) as process:
        if when == "running":
            wait_until(lambda: len(ran(project)) >= 2, "two runs to begin")
            message = refused_meanwhile(project)
            assert f"runs/sweep is being written by process {process.pid}." in message and "--name" in message
        else:
            wait_until(lambda: len(group(process.pid)) > 2, "the workers' server to start")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130, (project / "log").read_text()
        wait_until(lambda: not group(process.pid) and not kernels(project), "workers and kernels to end", 15)
    told = (project / "log").read_text()
    assert told.endswith("Stopped.\n") and "Traceback" not in told and "KeyboardInterrupt" not in told, told
    before = done_runs(project)
    assert sweep(project, *slow(4, 1.0)).returncode == 0
    assert {number for number, times in ran(project).items() if times > 1}.isdisjoint(map(str, before))
    check_finished(project, 4)


def refused_meanwhile(project: Path) -> str:
    """The paragraph with which a sweep is refused while another of the same name is going on."""
    done = sweep(project, *slow(4, 1.0))
    assert done.returncode == 2 and done.stdout == ""
    return paragraph(done.stderr)


def running_record(project: Path, others: set[str] = frozenset()) -> dict | None:
    """The record of a run whose cells are being executed."""
    for key, record in records(project / "runs/sweep").items():
        if record["status"] == "running" and key not in others and str(record["point"]["number"]) in ran(project):
            return record
    return None


@pytest.mark.thorough
def test_killed_worker_and_killed_kernel(project):
    """A run whose worker was killed is tried again; one whose kernel was killed has failed; the others are done."""
    with started(project, *slow(5, 1.0)) as process:
        wait_until(lambda: running_record(project), "a run to begin")
        first = running_record(project)
        psutil.Process(first["pid"]).kill()
        wait_until(lambda: ran(project)[str(first["point"]["number"])] == 2, "the run to be tried again")
        wait_until(lambda: kernels(project), "a kernel")
        kernels(project)[0].kill()
        assert process.wait(60) == 0, (project / "log").read_text()
    ends = statuses(project / "runs/sweep", "number")
    assert Counter(ends.values()) == {"done": 4, "failed": 1}
    (failed,) = [number for number, end in ends.items() if end == "failed"]
    assert "32_slow.ipynb stopped: DeadKernelError" in (project / "log").read_text()
    again = {str(first["point"]["number"]): 2}
    assert ran(project) == Counter(map(str, range(5))) | Counter(again)
    assert sweep(project, *slow(5, 1.0)).returncode == 0
    assert ran(project) - Counter(map(str, range(5))) == Counter([str(first["point"]["number"]), str(failed)])
    check_finished(project, 5)


UNWANTED = "matplotlib seaborn imblearn lightgbm scipy skl2onnx onnxmltools skops sklearn fastcore".split()


def zygotes(path: str) -> list[psutil.Process]:
    """The processes that kernels are forked from, in an environment with `path` in it."""
    found = []
    for process in psutil.process_iter():
        try:
            if "zygote_main" in " ".join(process.cmdline()) and path in process.environ().get("PYTHONPATH", ""):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return [process for process in found if process.ppid() not in {one.pid for one in found}]


@pytest.mark.thorough
def test_killed_zygote(project, tmp_path):
    """Runs in flight end, the next ones are forked from a new one, and the same command does the rest.

    The zygote is this test's own, with few modules so that it starts soon.
    """
    poor = tmp_path / "poor"
    for name in UNWANTED:
        (poor / f"{name}.py").parent.mkdir(exist_ok=True)
        (poor / f"{name}.py").write_text("raise ImportError('left out')")
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([str(poor), env["PYTHONPATH"]])
    with started(project, *slow(4, 1.0), env=env) as process:
        wait_until(lambda: running_record(project), "a run to begin")
        (zygote,) = zygotes(str(poor))
        zygote.kill()
        assert process.wait(90) == 0, (project / "log").read_text()
    ends = Counter(statuses(project / "runs/sweep", "number").values())
    assert ends["failed"] in (1, 2) and ends["done"] == 4 - ends["failed"]
    assert [one.pid for one in zygotes(str(poor))] != [zygote.pid]
    before = done_runs(project)
    try:
        done = command(project, "sweep", *slow(4, 1.0), env=env)
        assert done.returncode == 0, done.stderr
    finally:
        for one in zygotes(str(poor)):
            one.kill()
    assert {number for number, times in ran(project).items() if times > 1}.isdisjoint(map(str, before))
    check_finished(project, 4)


# -- no room on the disk


@pytest.mark.thorough
def test_disk_full(project):
    """A paragraph and exit code 1; no run counts as done that is not; with room, the same command does the rest."""
    cell = "from pathlib import Path\nPath(run_folder, 'big').write_bytes(bytes(400_000))"
    last = "from fraudnb.runs import record_numbers\nrecord_numbers({'area': side})"
    write_notebook(project / "nbs/34_big.ipynb", cell, last, parameters="side: int = 0\nrun_folder: str = ''")
    (project / "runs").mkdir()
    may = subprocess.run([*private, 'mount -t tmpfs none "$1"', "sh", str(project)], capture_output=True, text=True)
    assert may.returncode == 0, f"needs unshare (util-linux) and the right to mount a small disk: {may.stderr}"
    words = "34_big -g side=1,2,3 --by area --workers 1 --engine fresh".split()
    # two runs fit; the third finds no room, not even for its record. What it left is copied out, then there is room
    script = """
mount -t tmpfs -o size=900k none runs && "$@" >out1 2>err1; echo $? >code1; cp -r runs left
mount -o remount,size=9m runs && "$@" >out2 2>err2; echo $? >code2; cp -r runs end"""
    subprocess.run(
        [*private, script, "sh", str(BIN / "fraudnb"), "sweep", *words],
        cwd=project, env=environment(), timeout=300, check=True,
    )  # fmt: skip
    codes = [(project / name).read_text().strip() for name in ("code1", "code2")]
    assert codes == ["1", "0"], (project / "err1").read_text() + (project / "err2").read_text()
    message = paragraph((project / "err1").read_text().splitlines(keepends=True)[-1])
    assert "No space left on" in message and "the same command" in message
    for record in records(project / "left/sweep").values():
        if record["status"] == "done":
            assert json.loads((project / "left/sweep" / record["key"] / "metrics.json").read_text())
    before = Counter(record["status"] for record in records(project / "left/sweep").values())["done"]
    assert before > 0 and (project / "err2").read_text().count("done before") == before
    assert ranked(project / "end/sweep", "area") == [3, 2, 1]


# -- S3 and a cluster


@contextmanager
def cluster(folder: Path, env: dict[str, str], workers: int) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A Dask scheduler and `workers` workers, each in an empty folder of its own; its address and the processes."""
    address, processes = f"tcp://127.0.0.1:{free_port()}", []
    programs = [["scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]]
    programs += [["worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]] * workers
    try:
        for number, words in enumerate(programs):
            place = folder / f"{words[0]}{number}"
            place.mkdir(parents=True)
            with open(folder / f"{place.name}.log", "wb") as log:
                run = [str(BIN / "dask"), *words]
                processes.append(subprocess.Popen(run, cwd=place, env=env, stdout=log, stderr=log))
        wait_until(
            lambda: all("Registered to" in log.read_text() for log in folder.glob("worker*.log")),
            f"workers to start: {[log.read_text() for log in folder.glob('*.log')]}",
        )
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_cluster_with_nothing_but_s3(project, s3, bucket, tmp_path):
    """Workers in empty folders do what local ones do, to the number; nothing is repeated; one of them may be killed."""
    write_inputs(project)
    s3.put(bucket, "data/value.txt", b"7")
    s3.put(bucket, "model/deep/weight.txt", b"2")
    words = ("36_reader", "-g", "factor=1,2,3", "--by", "area")
    assert sweep(project, *words, "-p", "log", tmp_path / "local").returncode == 0
    env, place = environment() | s3.env, f"s3://{bucket}/sweeps/a"
    folders = ("-p", "data_folder", f"s3://{bucket}/data", "-p", "model_folder", f"s3://{bucket}/model")
    with cluster(tmp_path / "cluster", env, 2) as (address, processes):
        remote = (*words, *folders, "-p", "log", tmp_path / "ran", "--name", place, "--scheduler", address)
        done = command(project, "sweep", *remote, env=env)
        assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader(io.StringIO(s3.get(bucket, "sweeps/a/leaderboard.csv").decode())))
        assert [float(row["area"]) for row in rows] == [42, 28, 14] and ran(tmp_path) == {"1": 1, "2": 1, "3": 1}
        for row in rows:
            key = f"sweeps/a/{row['run']}"
            record = json.loads(s3.get(bucket, f"{key}/run.json"))
            assert (record["status"], record["folder"]) == ("done", f"s3://{bucket}/{key}")
            assert json.loads(s3.get(bucket, f"{key}/metrics.json")) == record["metrics"]
            assert json.loads(s3.get(bucket, f"{key}/36_reader.ipynb"))["cells"]
            assert s3.get(bucket, f"{key}/model/new.txt") == b"new"
        assert (s3.get(bucket, "data/value.txt"), s3.get(bucket, "model/deep/weight.txt")) == (b"7", b"2")
        assert all(list_files(tmp_path / "cluster" / f"worker{number}") == [] for number in (1, 2))
        done = command(project, "sweep", *remote, env=env)
        assert done.returncode == 0 and done.stderr.count("done before") == 3 and sum(ran(tmp_path).values()) == 3
        # one of two workers is killed: the other does its run
        more = ("32_slow", "-g", numbered(4), "-p", "seconds", "1", "--by", "area", "--name", f"s3://{bucket}/sweeps/b")
        with started(project, *more, "--scheduler", address, env=env) as process:
            wait_until(lambda: b"/4]" in (project / "log").read_bytes(), "a run to be done")
            processes[1].kill()
            assert process.wait(60) == 0, (project / "log").read_text()
        rows = list(csv.DictReader(io.StringIO(s3.get(bucket, "sweeps/b/leaderboard.csv").decode())))
        assert [float(row["area"]) for row in rows] == [9, 4, 1, 0]


@pytest.mark.thorough
def test_scheduler_that_dies(project, s3, bucket, tmp_path):
    """Exit code 1, soon, and one paragraph; with another cluster the same command does the rest."""
    env, words = environment() | s3.env, [*slow(4, 1.0)[:-2], "--name", f"s3://{bucket}/a"]
    with cluster(tmp_path / "first", env, 1) as (address, processes):
        with started(project, *words, "--scheduler", address, env=env) as process:
            wait_until(lambda: b"/4]" in (project / "log").read_bytes(), "a run to be done")
            processes[0].kill()
            killed = time.monotonic()
            assert process.wait(60) == 1, (project / "log").read_text()
            assert time.monotonic() - killed < 15
    *lines, last = (project / "log").read_text().splitlines(keepends=True)
    message = paragraph(last)
    assert "The connection to the scheduler broke off" in message and "The same command" in message
    assert all(re.match(r"\[\d/4\] ", line) for line in lines)
    with cluster(tmp_path / "second", env, 1) as (address, _):
        done = command(project, "sweep", *words, "--scheduler", address, env=env)
        assert done.returncode == 0, done.stderr
    assert done.stderr.count("done before") >= len(lines) and "4 runs done, 0 failed" in done.stdout


def test_scheduler_that_is_nowhere(project):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and not listening
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        begun = time.monotonic()
        done = command(project, "sweep", "30_square", "-g", "side=1", "--by", "area", "--scheduler", address)
    assert done.returncode == 1 and time.monotonic() - begun < 20
    assert f"No Dask scheduler answers at {address}" in paragraph(done.stderr)


@pytest.mark.thorough
def test_local_data_and_a_remote_folder(project):
    """A cluster's workers could not see the data: said before anything is connected to."""
    write_inputs(project)
    words = ("--name", "s3://bucket/a", "--scheduler", "tcp://127.0.0.1:9", "--by", "area")
    message = refused(project, "36_reader", "-g", "factor=1", *words)
    assert f"cannot see {project / 'data/main'}" in message and "-p data_folder s3://BUCKET/FOLDER" in message


@pytest.mark.thorough
def test_s3_without_a_cluster(project, s3, bucket, tmp_path):
    """Results on S3 from local data, and local results from data on S3."""
    write_inputs(project)
    s3.put(bucket, "data/value.txt", b"5")
    env, words = (
        environment() | s3.env,
        ("36_reader", "-g", "factor=1,2", "-p", "log", tmp_path / "ran", "--by", "area"),
    )
    done = command(project, "sweep", *words, "--name", f"s3://{bucket}/a", env=env)
    assert done.returncode == 0, done.stderr
    assert f"s3://{bucket}/a/leaderboard.csv" in done.stdout and not (project / "runs").exists()
    assert not list(project.glob("s3*")) and sum(ran(tmp_path).values()) == 2
    done = command(project, "sweep", *words, "-p", "data_folder", f"s3://{bucket}/data", env=env)
    assert done.returncode == 0, done.stderr
    assert ranked(project / "runs/sweep", "area") == [20, 10]


@pytest.mark.thorough
def test_bucket_that_is_not_there(project, s3):
    done = command(
        project, "sweep", "30_square", "-g", "side=1", "--name", "s3://no-such-bucket/a", "--by", "area",
        env=environment() | s3.env,
    )  # fmt: skip
    assert done.returncode == 2 and not (project / "ran").exists()
    assert "no-such-bucket" in paragraph(done.stderr)


# -- the pipeline


def test_pipeline(small_run, tmp_path):
    """03_train, and 04_evaluate on what it has made: intervals, and a sentence on what cannot be told apart."""
    project = shutil.copytree(small_run, tmp_path / "project")
    before = snapshot(project / "data"), snapshot(project / "models")
    models = "model=logistic_regression,decision_tree"
    done = command(project, "sweep", "03_train", "--then", "04_evaluate", "-g", models)
    assert done.returncode == 0, done.stderr
    rows = board(project / "runs/sweep")
    assert {row["model"] for row in rows} == {"logistic_regression", "decision_tree"}
    values = [float(row["valid_average_precision"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert all(float(row["low"]) <= float(row["average_precision"]) <= float(row["high"]) for row in rows)
    text = one_line(done.stdout)
    assert "The other one cannot be told apart from the first" in text or "is ahead of all others" in text
    assert (snapshot(project / "data"), snapshot(project / "models")) == before
    for row in rows:
        folder = project / "runs/sweep" / row["run"]
        assert (folder / "model/model.onnx").exists() and (folder / "scores.parquet").exists()
        assert not (folder / "data").exists()
    done = command(project, "sweep", "03_train", "--then", "04_evaluate", "-g", models)
    assert done.returncode == 0 and done.stderr.count("done before") == 2
