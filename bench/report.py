"""Measure `fraudnb report`: 200 runs with two executed notebooks each, from nothing, with nothing changed, with one.

    python bench/report.py
    python bench/report.py --runs 20 --repeats 1
    python bench/report.py --keep FOLDER       # and look at the site

The notebooks are 03_train and 04_evaluate as `fraudnb run -p source sample:5000` has executed them once, with their
figures and tables. Every run has copies in which the digits of all outputs' text are others, so that no page is made
from another's tables; the code and the prose are the same in all runs, as they are in real ones. Times are wall seconds
of the whole command, start included.

The other side is nbconvert as it comes (`HTMLExporter`, what `jupyter nbconvert --to html` uses), one process, one
notebook after the other, on some of the same notebooks: its time is that for a page, times the number of pages, without
its imports and its first page. It makes no index, and its pages fetch scripts from the network when they are opened.
"""

import argparse
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

from common import BIN, alternate, make_project, markdown, median_and_range, own_zygotes, print_heading, scratch_folder

STEMS = ("03_train", "04_evaluate")


def executed_run(project: Path) -> Path:
    """The folder of a run of the whole pipeline in `project`, executed once."""
    with own_zygotes(dict(os.environ)) as env:
        command = [BIN / "fraudnb", "run", "-p", "source", "sample:5000"]
        subprocess.run(command, cwd=project, env=env, check=True, stdout=sys.stderr)
    return project / "runs" / "main"


def change_digits(text: str, seed: int) -> str:
    """`text` with other digits, the same for the same `seed`."""
    digits = list("0123456789")
    random.Random(seed).shuffle(digits)
    return text.translate({ord(one): other for one, other in zip("0123456789", digits, strict=True)})


def copy_notebook(source: Path, target: Path, seed: int) -> None:
    """Write the executed notebook `source` to `target` with other digits in all outputs' text."""
    notebook = json.loads(source.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = change_digits("".join(output["text"]), seed)
            for kind in ("text/html", "text/plain", "text/markdown"):
                if kind in output.get("data", {}):
                    output["data"][kind] = change_digits("".join(output["data"][kind]), seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook, indent=1), encoding="utf-8")


def make_runs(project: Path, runs: int) -> list[Path]:
    """Copy the executed notebooks of `project` into `runs` runs of their own; all of the copies."""
    first = executed_run(project)
    made = []
    for number in range(runs):
        folder = project / "runs" / f"run-{number:03}"
        for stem in STEMS:
            made.append(folder / f"{stem}.ipynb")
            copy_notebook(first / f"{stem}.ipynb", made[-1], number)
        shutil.copy(first / "metrics.json", folder)
    shutil.rmtree(first)
    return made


def time_report(project: Path, fresh: bool = False, touch: Path | None = None) -> float:
    """Seconds that `fraudnb report` takes in `project`; without its earlier site if `fresh`, `touch` being changed."""
    if fresh:
        shutil.rmtree(project / "site", ignore_errors=True)
    if touch:
        os.utime(touch)
    start = time.perf_counter()
    done = subprocess.run([BIN / "fraudnb", "report"], cwd=project, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    print(done.stdout, end="", file=sys.stderr)
    return seconds


def time_nbconvert(notebooks: list[Path], out: Path) -> float:
    """Seconds for a page that nbconvert takes for `notebooks`, one after the other in this process."""
    from nbconvert.exporters import HTMLExporter

    # remarks that pictures have no text, and that there are recorded numbers
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    out.mkdir(exist_ok=True)
    exporter = HTMLExporter()
    exporter.from_filename(str(notebooks[-1]))
    start = time.perf_counter()
    for path in notebooks:
        page, _ = exporter.from_filename(str(path))
        (out / f"{path.parent.name}-{path.stem}.html").write_text(page, encoding="utf-8")
    return (time.perf_counter() - start) / len(notebooks)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="runs, of two notebooks each (default 200)")
    parser.add_argument("--repeats", type=int, default=3, help="times each side is measured (default 3)")
    parser.add_argument("--pages", type=int, default=20, help="pages that nbconvert makes each time (default 20)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in FOLDER and leave it there")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    print_heading()
    with scratch_folder(arguments.keep, 3e6 * arguments.runs) as folder:
        project = make_project(folder / "project")
        notebooks = make_runs(project, arguments.runs)
        sides = {
            "from nothing": lambda: time_report(project, fresh=True),
            "nothing changed": lambda: time_report(project),
            "one notebook changed": lambda: time_report(project, touch=notebooks[0]),
            "nbconvert": lambda: time_nbconvert(notebooks[: arguments.pages], folder / "nbconvert") * len(notebooks),
        }
        results = alternate(sides, arguments.repeats)
        size = sum(path.stat().st_size for path in (project / "site").rglob("*") if path.is_file()) / 1e6
        other = statistics.median(results["nbconvert"])
        rows = [
            [f"`fraudnb report`, {name}", median_and_range(seconds), f"{other / statistics.median(seconds):.1f}"]
            for name, seconds in results.items()
            if name != "nbconvert"
        ]
        scaled = f"nbconvert, {arguments.pages} pages, scaled to all"
        rows.append([scaled, median_and_range(results["nbconvert"]), "1.0"])
        print(markdown(["side", "seconds", "times as fast"], rows))
        print(f"\n{arguments.runs} runs, {len(notebooks)} notebooks, site of {size:,.0f} MB")


if __name__ == "__main__":
    main()
