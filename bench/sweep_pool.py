"""python sweep_pool.py KIND WORKERS FOLDER: the runs prepared below FOLDER in a pool of processes, for bench/sweep.py.

KIND is papermill, ploomber, bare or bare-without-figures. Each run is a subfolder with a file `values.json`: parameters
by notebook. Prints the seconds of each run. Started in the project's root.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fraudnb.runs import without_rfc3987

NOTEBOOKS = ("03_train", "04_evaluate")


def run_notebooks(execute: Callable[..., Any], folder: Path) -> None:
    """Execute both notebooks into `folder` by `execute`, papermill's function or one like it."""
    values = json.loads((folder / "values.json").read_text())
    for stem in NOTEBOOKS:
        execute(f"nbs/{stem}.ipynb", str(folder / f"{stem}.ipynb"), parameters=values[stem], progress_bar=False)


def run_papermill(folder: Path) -> None:
    """The run in `folder` by papermill, in two new kernels."""
    without_rfc3987()
    import papermill

    run_notebooks(papermill.execute_notebook, folder)


def run_ploomber(folder: Path) -> None:
    """The run in `folder` by ploomber-engine, in this process."""
    import ploomber_engine

    run_notebooks(ploomber_engine.execute_notebook, folder)


def run_bare(folder: Path, figures: bool = True) -> None:
    """The run in `folder` by the run cells' plain code, in this process."""
    import bare

    values = json.loads((folder / "values.json").read_text())
    for stem in NOTEBOOKS:
        bare.run_notebook(stem, values[stem], figures)


def run_bare_without_figures(folder: Path) -> None:
    """The same, nothing drawn."""
    run_bare(folder, figures=False)


KINDS = {
    "papermill": run_papermill,
    "ploomber": run_ploomber,
    "bare": run_bare,
    "bare-without-figures": run_bare_without_figures,
}


def seconds_of(kind: str, folder: Path) -> float:
    """Do the run in `folder`; the wall seconds it took, imports of the worker's first run included."""
    start = time.perf_counter()
    KINDS[kind](folder)
    return time.perf_counter() - start


def main() -> None:
    """Do the runs in the pool."""
    # by its name: ploomber-engine puts a module of its own in place of __main__, where the workers would look
    from sweep_pool import seconds_of

    kind, workers, parent = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    folders = sorted(one.parent for one in parent.glob("*/values.json"))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for folder, seconds in zip(folders, pool.map(seconds_of, [kind] * len(folders), folders), strict=True):
            print(folder.name, f"{seconds:.3f}", flush=True)


if __name__ == "__main__":
    main()
