"""Measure `fraudnb run` (five notebooks, all figures and intervals) against the article's pipeline as plain scripts.

    python bench/article.py                          # 284,807 synthetic rows, as many as the ULB data set has
    python bench/article.py --repeats 3              # medians of three rounds
    python bench/article.py --data creditcard.csv    # a file of yours, read where it is
    python bench/article.py --one-process            # the article also in one process
    python bench/article.py --without-exploring      # neither explore nor 01_explore
    python bench/article.py --engine fresh           # fraudnb with a new kernel per notebook
    python bench/article.py --rows 20000 --keep build/bench/article    # a quick check; logs and results stay there

All sides start from the same CSV file and are run one after the other in each round. The article's side is
bench/article_scripts/, written for this benchmark after the article and the Kaggle notebook it builds on (J. Bachmann,
"Credit Fraud || Dealing with Imbalanced Datasets"), each script a process of its own, as a DVC stage is:

preprocess   read with pandas, describe, scale amount and time, undersample 1:1, cut outliers of V14, V12, V10, split
explore      read again; class counts, distributions, two correlation heatmaps, box plots, t-SNE, PCA, truncated SVD
train        14 logistic regressions (penalty l1, l2; 7 values of C) in 5 folds, the best one pickled
evaluate     classification report, weighted metrics, confusion matrix as a heatmap

Only the small tables (about a thousand rows) are passed on as CSV; nothing is checked, no test set is as rare in frauds
as life, no number has an interval, and fetching by boto3 is left out. One process (one_process.py) imports once, reads
once and passes tables in memory.

fraudnb's sides are `fraudnb run -p source FILE` with the defaults of params.yaml (LightGBM on all training rows) and
with `-f recipes/article.yaml`, which does what the article does and measures it on an honest test set as well.

Everybody gets OMP_WAIT_POLICY=PASSIVE (which `fraudnb run` sets itself): with cores shared, threads that spin make the
article's t-SNE take three times as long. "CPU s" is user and system time of all processes of a side. Notebooks may
run side by side: their times then add up to more than the whole.
"""

import argparse
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import (
    BIN,
    CSV_BYTES_PER_ROW,
    ROOM_PER_CSV_BYTE,
    ROOT,
    alternate,
    make_project,
    markdown,
    median_and_range,
    print_heading,
    scratch_folder,
    timed,
    write_csv,
)

from fraudnb.runs import pipeline_notebooks

SCRIPTS = ROOT / "bench" / "article_scripts"
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Took:
    """What one run of a side took in seconds: wall, CPU, and wall of each of its parts."""

    seconds: float
    cpu: float
    parts: dict[str, float]


def run_scripts(source: Path, folder: Path, exploring: bool) -> Took:
    """Run the article's scripts one after the other in `folder`."""
    used = {}
    for name in ("preprocess", *(["explore"] if exploring else []), "train", "evaluate"):
        read = [str(source)] if name in ("preprocess", "explore") else []
        command = [sys.executable, str(SCRIPTS / f"{name}.py"), *read, str(folder)]
        used[name] = timed(command, folder, folder / f"{name}.log", ENVIRONMENT)
    return Took(*map(sum, zip(*used.values(), strict=True)), {name: seconds for name, (seconds, _) in used.items()})


def run_one_process(source: Path, folder: Path) -> Took:
    """Run the article's scripts in one process in `folder`."""
    command = [sys.executable, str(SCRIPTS / "one_process.py"), str(source), str(folder)]
    return Took(*timed(command, folder, folder / "one_process.log", ENVIRONMENT), {})


def run_fraudnb(source: Path, folder: Path, more: Sequence[str]) -> Took:
    """Run the notebooks of the project in `folder`; the parts are what `fraudnb run` prints of each notebook."""
    command = [str(BIN / "fraudnb"), "run", "-p", "source", str(source), "--name", "bench", *more]
    log = folder / "run.log"
    used = timed(command, folder, log, ENVIRONMENT)
    printed = sorted(re.findall(r"(\w+)\.ipynb +([\d.]+) s", log.read_text()))
    return Took(*used, {name: float(seconds) for name, seconds in printed})


def make_sides(
    folder: Path, source: Path, exploring: bool, one_process: bool, engine: str
) -> dict[str, Callable[[], Took]]:
    """The sides by their names in the table, each with a folder of its own."""
    folders = {name: folder / name for name in ("scripts", "process", "default", "recipe")}
    for one in folders.values():
        one.mkdir(exist_ok=True)
    notebooks = [
        path.stem for path in pipeline_notebooks(make_project(folders["default"])) if "explore" not in path.stem
    ]
    make_project(folders["recipe"])
    more = [*([] if exploring else notebooks), *(["--engine", engine] if engine else [])]
    recipe = ["-f", "recipes/article.yaml"]
    return {
        f"article, {'four' if exploring else 'three'} scripts": partial(
            run_scripts, source, folders["scripts"], exploring
        ),
        **({"article, one process": partial(run_one_process, source, folders["process"])} if one_process else {}),
        f"`{' '.join(['fraudnb run', *more, *recipe])}`": partial(
            run_fraudnb, source, folders["recipe"], [*more, *recipe]
        ),
        f"`{' '.join(['fraudnb run', *more])}`": partial(run_fraudnb, source, folders["default"], more),
    }


def sides_table(results: Mapping[str, Sequence[Took]]) -> str:
    """A row per side: median wall and CPU seconds, each with its ratio to the article's scripts."""
    wall = {name: statistics.median(one.seconds for one in runs) for name, runs in results.items()}
    cpu = {name: statistics.median(one.cpu for one in runs) for name, runs in results.items()}
    base = next(iter(results))
    rows = [
        [
            name,
            median_and_range([one.seconds for one in runs]),
            f"{wall[name] / wall[base]:.2f}",
            f"{cpu[name]:.1f}",
            f"{cpu[name] / cpu[base]:.2f}",
        ]
        for name, runs in results.items()
    ]
    return markdown(["side", "wall s", "ratio", "CPU s", "ratio"], rows)


def parts_table(results: Mapping[str, Sequence[Took]]) -> str:
    """A row per script or notebook of each side: median wall seconds."""
    rows = [
        [name, part, f"{statistics.median(one.parts[part] for one in runs):.1f}"]
        for name, runs in results.items()
        for part in runs[0].parts
    ]
    return markdown(["side", "script or notebook", "wall s"], rows)


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="fraudnb run against the article's pipeline as plain scripts.")
    parser.add_argument("--rows", type=int, default=284_807, help="synthetic rows (default: 284807)")
    parser.add_argument("--data", type=Path, metavar="PATH.csv", help="measure on this file instead")
    parser.add_argument("--repeats", type=int, default=1, help="rounds of which to take medians (default: 1)")
    parser.add_argument("--one-process", action="store_true", help="run the article in one process as well")
    parser.add_argument("--without-exploring", action="store_true", help="leave out explore and 01_explore")
    parser.add_argument("--engine", default="", help="passed on to fraudnb run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this folder and leave it there")
    options = parser.parse_args()
    if options.one_process and options.without_exploring:
        parser.error("--one-process explores too: leave out --without-exploring")
    return options


def main() -> None:
    """Measure both sides on one CSV file and print the tables."""
    options = parse_arguments()
    data = options.data.resolve(strict=True) if options.data else None
    made = 0 if data else options.rows * CSV_BYTES_PER_ROW
    needed = made + 2 * ROOM_PER_CSV_BYTE * (data.stat().st_size if data else made)
    print_heading()
    with scratch_folder(options.keep, needed) as folder:
        source = data or folder / "transactions.csv"
        if not data:
            write_csv(source, options.rows)
        sides = make_sides(folder, source, not options.without_exploring, options.one_process, options.engine)
        results = alternate(sides, options.repeats)
        title = data.name if data else f"{options.rows:,} synthetic rows"
        size = f"{source.stat().st_size / 1e6:,.0f} MB of CSV"
    rounds = f"medians (and ranges) of {options.repeats} rounds" if options.repeats > 1 else "one round"
    print(f"### {title}, {size}, {rounds}\n\n{sides_table(results)}\n\n{parts_table(results)}")


if __name__ == "__main__":
    main()
