"""Measure `fraudnb sweep` against other ways to do the same runs of 03_train and 04_evaluate: runs per minute.

    python bench/sweep.py                                 # 24 runs on 46,857 synthetic rows
    python bench/sweep.py --data transactions.parquet     # on a table of yours (CSV or Parquet)
    python bench/sweep.py --repeats 3                     # medians of three rounds
    python bench/sweep.py --runs 4 --sides sweep bare     # a quick check of two sides

The sides, each with two workers (`--workers`) of one thread each, and each a command that starts from nothing:

sweep                  fraudnb sweep 03_train --then 04_evaluate -g ... --workers 2
papermill-shell        xargs -P 2, each item the papermill command for 03 and then for 04: a new process and a new
                       kernel for every notebook
papermill-pool         papermill.execute_notebook in a pool of two processes: a new kernel for every notebook
ploomber               ploomber_engine.execute_notebook in a pool of two processes: notebooks run inside them, where
                       scrapbook finds no kernel and records nothing. Left out if it is not installed:
                       pip install ploomber-engine
bare                   bench/bare.py in a pool of two processes that import everything once: the code of the notebooks'
                       run cells, compiled once, with their figures and tables rendered, without lessons, kernels or
                       executed copies
bare-without-figures   the same, nothing drawn

The 24 runs ask how much of a model's worth is luck when training rows are undersampled 1:1: a logistic regression and a
decision tree, with and without the time of day, six draws each. They are quick, so that what a sweep adds to the bare
computation shows. 00_download and 02_preprocess are run once, before. All sides must end with the same average
precision for each run, and all runs of a side with different ones; otherwise there is no table.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import BIN, ROOT, alternate, make_project, markdown, median_and_range, print_heading, scratch_folder, timed

from fraudnb.runs import find_notebook, read_parameters

NOTEBOOKS = ("03_train", "04_evaluate")
# 03_train's parameters that differ from run to run, together with the seed, and those that do not
GRID: dict[str, list[Any]] = {"model": ["logistic_regression", "decision_tree"], "use_time": [False, True]}
FIXED: dict[str, Any] = {"sampler": "undersample", "jobs": 1}
RUNS_PER_SEED = 4
SIDES = ("sweep", "papermill-shell", "papermill-pool", "ploomber", "bare", "bare-without-figures")
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PLOOMBER_STATS_ENABLED": "false",
}


@dataclass(frozen=True)
class Took:
    """What one round of a side took in seconds: wall, CPU, and each run's wall where the side tells it."""

    seconds: float
    cpu: float
    runs: list[float]


def parameter_sets(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of `grid`."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def run_key(values: Mapping[str, Any]) -> str:
    """What tells a run of the grid from the others."""
    return f"{values['model']}, use_time {values['use_time']}, seed {values['seed']}"


def prepare_runs(project: Path, parent: Path, grid: Mapping[str, Sequence[Any]]) -> None:
    """A folder below `parent` for each run, with the values of all parameters of both notebooks in values.json."""
    declared = {stem: read_parameters(find_notebook(stem, project)) for stem in NOTEBOOKS}
    for number, chosen in enumerate(parameter_sets(grid)):
        folder = parent / f"{number:03}"
        folder.mkdir(parents=True)
        folders = {"model_folder": str(folder / "model"), "run_folder": str(folder)}
        given = {"03_train": folders | FIXED | chosen, "04_evaluate": folders}
        values = {
            stem: {name: given[stem].get(name, one.default) for name, one in parameters.items()}
            for stem, parameters in declared.items()
        }
        (folder / "values.json").write_text(json.dumps(values))
        for stem in NOTEBOOKS:
            # for the papermill command: JSON is YAML
            (folder / f"{stem}.yaml").write_text(json.dumps(values[stem]))


def new_folder(project: Path, side: str) -> Path:
    """A folder for the next round of `side`: runs/SIDE-1, runs/SIDE-2, ... of the project."""
    numbers = itertools.count(1)
    return next(one for one in (project / "runs" / f"{side}-{number}" for number in numbers) if not one.exists())


def run_prepared(command: Sequence[str], side: str, project: Path, grid: Mapping[str, Sequence[Any]]) -> Took:
    """Do all runs of `grid` by `command`, in which {folder} stands for the folder with one subfolder per run."""
    parent = new_folder(project, side)
    prepare_runs(project, parent, grid)
    log = parent / "side.log"
    used = timed([word.replace("{folder}", str(parent)) for word in command], project, log, ENVIRONMENT)
    return Took(*used, [float(seconds) for seconds in re.findall(r"^\d{3} ([\d.]+)$", log.read_text(), re.M)])


def shell_loop(workers: int) -> list[str]:
    """The shell loop over the papermill command."""
    papermill = BIN / "papermill"
    steps = [f"{papermill} nbs/{stem}.ipynb '%/{stem}.ipynb' -f '%/{stem}.yaml'" for stem in NOTEBOOKS]
    return ["sh", "-c", f'ls -d {{folder}}/*/ | xargs -P {workers} -I% sh -c "{" && ".join(steps)}"']


def run_sweep(project: Path, grid: Mapping[str, Sequence[Any]], workers: int) -> Took:
    """Do all runs of `grid` by `fraudnb sweep`."""
    folder = new_folder(project, "sweep")
    folder.mkdir(parents=True)
    command = [str(BIN / "fraudnb"), *sweep_arguments(grid), "--name", folder.name, "--workers", str(workers)]
    used = timed(command, project, folder.with_suffix(".log"), ENVIRONMENT)
    return Took(*used, [record["seconds"]["all"] for record in sweep_records(folder)])


def sweep_arguments(grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """What `fraudnb` is told for a sweep of both notebooks over `grid`, without where and by whom."""
    texts = {name: ",".join(json.dumps(value).strip('"') for value in values) for name, values in grid.items()}
    vary = [word for name, text in texts.items() for word in ("-g", f"{name}={text}")]
    fixed = [word for name, value in FIXED.items() for word in ("-p", name, str(value))]
    return ["sweep", "03_train", "--then", "04_evaluate", *vary, *fixed]


def sweep_records(folder: Path) -> list[dict[str, Any]]:
    """What `fraudnb sweep` noted of each run below `folder`; ends the program if one is not done."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))]
    for record in records:
        if record["status"] != "done":
            sys.exit(f"The run {record['key']} in {folder} is not done: {record}")
    return records


def average_precisions(parent: Path) -> dict[str, float]:
    """The average precision of each finished run below `parent` by its `run_key`."""
    found = {run_key(one["point"]): one["metrics"]["average_precision"] for one in sweep_records(parent)}
    for path in parent.glob("*/values.json"):
        values = json.loads(path.read_text())["03_train"]
        evaluation = json.loads((path.parent / "model" / "evaluation.json").read_text())
        found[run_key(values)] = evaluation["metrics"]["average_precision"]
    return found


def check_results(project: Path, runs: int) -> str:
    """A line that says that all rounds of all sides agree in each run's average precision; else ends the program."""
    results = {one.name: average_precisions(one) for one in sorted((project / "runs").glob("*-[0-9]*")) if one.is_dir()}
    first = next(iter(results.values()))
    for name, found in results.items():
        if len(found) != runs or found != first:
            differing = {key: (first.get(key), found.get(key)) for key in first | found}
            sys.exit(f"{name} did not end with the results of {next(iter(results))}: {differing}")
    if len(set(first.values())) != runs:
        sys.exit(f"The runs are not all different: {first}")
    low, high = min(first.values()), max(first.values())
    return f"All sides ended with the same average precision for each of the {runs} runs ({low:.4g} to {high:.4g})."


def sides_table(results: Mapping[str, Sequence[Took]], runs: int) -> str:
    """A row per side: median wall and CPU seconds, runs a minute, and ratios to the slowest and the bare side."""
    rate = {name: statistics.median(60 * runs / one.seconds for one in took) for name, took in results.items()}
    base = {name: rate[name] for name in ("papermill-shell", "bare") if name in rate}
    rows = [
        [
            name,
            median_and_range([one.seconds for one in took]),
            f"{statistics.median(one.cpu for one in took):.1f}",
            f"{statistics.median(s for one in took for s in one.runs):.2f}" if took[0].runs else "",
            f"{rate[name]:.1f}",
            *(f"{rate[name] / other:.2f}" for other in base.values()),
        ]
        for name, took in results.items()
    ]
    ratios = [f"times {name}" for name in base]
    return markdown(["side", "wall s", "CPU s", "median s a run", "runs a minute", *ratios], rows)


def make_sides(
    project: Path, grid: Mapping[str, Sequence[Any]], workers: int, names: Sequence[str]
) -> dict[str, Callable[[], Took]]:
    """The sides called `names`."""
    pool = [sys.executable, str(ROOT / "bench" / "sweep_pool.py")]
    commands = {
        "papermill-shell": shell_loop(workers),
        "papermill-pool": [*pool, "papermill", str(workers), "{folder}"],
        "ploomber": [*pool, "ploomber", str(workers), "{folder}"],
        "bare": [*pool, "bare", str(workers), "{folder}"],
        "bare-without-figures": [*pool, "bare-without-figures", str(workers), "{folder}"],
    }
    sides: dict[str, Callable[[], Took]] = {
        name: partial(run_prepared, command, name, project, grid) for name, command in commands.items()
    }
    return {name: (sides | {"sweep": partial(run_sweep, project, grid, workers)})[name] for name in names}


def prepare_project(folder: Path, source: str) -> Path:
    """A project at `folder` in which 00_download and 02_preprocess were run on `source`."""
    project = make_project(folder)
    command = [str(BIN / "fraudnb"), "run", "00_download", "02_preprocess", "-p", "source", source]
    timed(command, project, project / "prepare.log", ENVIRONMENT)
    return project


def usable_sides(names: Sequence[str]) -> list[str]:
    """`names` without those that cannot run here, which is said."""
    listed = subprocess.run([str(BIN / "fraudnb"), "--help"], capture_output=True, text=True, check=True).stdout
    missing = {}
    if not re.search(r"\bsweep\b", listed):
        missing["sweep"] = "this fraudnb has no command sweep"
    if importlib.util.find_spec("ploomber_engine") is None:
        missing["ploomber"] = "ploomber-engine is not installed (pip install ploomber-engine)"
    for name in names:
        if name in missing:
            print(f"Left out: {name}: {missing[name]}.\n", flush=True)
    return [name for name in names if name not in missing]


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="fraudnb sweep against other ways to do the same runs.")
    parser.add_argument("--data", type=Path, metavar="PATH", help="transactions, CSV or Parquet (default: synthetic)")
    parser.add_argument("--rows", type=int, default=46_857, help="synthetic rows (default: 46857)")
    parser.add_argument("--runs", type=int, default=24, help="runs of the sweep, a multiple of 4 (default: 24)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--repeats", type=int, default=1, help="rounds of which to take medians (default: 1)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="default: all")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this new folder and leave it there")
    options = parser.parse_args()
    if options.runs < RUNS_PER_SEED or options.runs % RUNS_PER_SEED:
        parser.error(f"--runs must be a multiple of {RUNS_PER_SEED}")
    return options


def main() -> None:
    """Do the sweep by every side and print the table."""
    options = parse_arguments()
    print_heading()
    names = usable_sides(options.sides)
    grid = GRID | {"seed": list(range(options.runs // RUNS_PER_SEED))}
    source = str(options.data.resolve(strict=True)) if options.data else f"sample:{options.rows}"
    with scratch_folder(options.keep, 2e9) as folder:
        project = prepare_project(folder, source)
        results = alternate(make_sides(project, grid, options.workers, names), options.repeats)
        checked = check_results(project, options.runs)
    title = options.data.name if options.data else f"{options.rows:,} synthetic rows"
    rounds = f"medians (and ranges) of {options.repeats} rounds" if options.repeats > 1 else "one round"
    print(f"### {options.runs} runs on {title}, {options.workers} workers with one thread each, {rounds}\n")
    print(f"{sides_table(results, options.runs)}\n\n{checked}")


if __name__ == "__main__":
    main()
