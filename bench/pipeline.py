"""Measure the pipeline from a CSV file to metrics: wall time and peak memory of each notebook, as a Markdown table.

    python bench/pipeline.py                                  # 284,807 rows, as many as the ULB data set has
    python bench/pipeline.py --rows 284807 --rows 10000000    # one table per size
    python bench/pipeline.py --repeats 3                      # medians of three runs
    python bench/pipeline.py --data creditcard.csv            # a file of yours, read where it is
    python bench/pipeline.py --rows 5000 --keep build/bench   # a quick check; the scratch project stays there

Rows are synthetic (`fraudnb.sample`). Each notebook is run by its own `fraudnb run` in a scratch project that has
copies of nbs/, settings.ini and params.yaml. Two peaks are measured for each of them:

tree     the sum of PSS over `fraudnb run`, the Jupyter kernel it starts, the process that warm kernels are forked from
         (started by the first notebook, which pays for it) and all their other children, polled every 50 ms (less often
         where looking itself takes over 10 ms). PSS (proportional set size) counts a page that n
         processes share as 1/n in each, so the sum counts it once; a peak between two looks can be missed.
kernel   the highest VmHWM of a process below `fraudnb run`: the kernel's largest resident set, as Linux itself keeps
         it, so that nothing is missed; it counts the pages of shared libraries in full.

Where there is no /proc, both come from polled RSS. "CPU s" is user and system time of the whole tree: on a machine that
has other work it says more than the wall time does.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
from common import (
    BIN,
    CSV_BYTES_PER_ROW,
    ROOM_PER_CSV_BYTE,
    children_seconds,
    cpu_seconds,
    left_running,
    make_project,
    own_zygotes,
    print_heading,
    proc_bytes,
    scratch_folder,
    write_csv,
)

from fraudnb.runs import pipeline_notebooks

POLL_SECONDS = 0.05
SHOWN_METRICS = ("average_precision", "valid_average_precision", "roc_auc", "expected_cost", "test_rows", "test_frauds")


@dataclass(frozen=True)
class Usage:
    """What one notebook took: wall and CPU time in seconds; peak memory of process tree and kernel in MiB."""

    seconds: float
    cpu: float
    tree: float
    kernel: float


def rss(process: psutil.Process) -> int:
    """The resident set of `process` in bytes; 0 if it has ended."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def tree_memory(roots: Sequence[psutil.Process]) -> tuple[int, int]:
    """The sum of PSS over `roots` and what is below them, and the largest peak RSS below them, both in bytes."""
    children = set()
    for root in roots:
        try:
            children.update(root.children(recursive=True))
        except psutil.Error:
            continue  # it has ended
    shares = [proc_bytes(one.pid, "smaps_rollup", "Pss") or rss(one) for one in children.union(roots)]
    peaks = [proc_bytes(one.pid, "status", "VmHWM") or rss(one) for one in children]
    return sum(shares), max(peaks, default=0)


def measure(command: Sequence[str], folder: Path, log: Path, env: Mapping[str, str]) -> Usage:
    """Run `command` in `folder`, its output going to `log`, and measure it; ends the program if it fails.

    `env` is from `own_zygotes`: a zygote that an earlier command has started counts as part of this one.
    """
    tree = kernel = 0
    zygotes = left_running(env["XDG_RUNTIME_DIR"])
    with log.open("w") as output:
        start, cpu = time.perf_counter(), children_seconds() + cpu_seconds(zygotes)
        with subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=env) as running:
            roots = [psutil.Process(running.pid), *zygotes]
            while running.poll() is None:
                looked = time.perf_counter()
                now = tree_memory(roots)
                tree, kernel = max(tree, now[0]), max(kernel, now[1])
                # looking at a large process takes its time: leave the measured ones most of it
                wait_for(running, max(POLL_SECONDS, 5 * (time.perf_counter() - looked)))
        seconds = time.perf_counter() - start
        cpu = children_seconds() + cpu_seconds(left_running(env["XDG_RUNTIME_DIR"])) - cpu
    if running.returncode != 0:
        sys.exit(f"{shlex.join(command)} failed in {folder}:\n{log.read_text()}")
    return Usage(seconds, cpu, tree / 2**20, kernel / 2**20)


def wait_for(running: subprocess.Popen, seconds: float) -> None:
    """Wait until the process ends, but not longer than `seconds`."""
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def run_pipeline(project: Path, data: Path) -> dict[str, Usage]:
    """Run the notebooks of `project` on the CSV file `data` one by one; what each took, by its name."""
    fraudnb = str(BIN / "fraudnb")
    usage = {}
    with own_zygotes(os.environ) as env:
        for notebook in pipeline_notebooks(project):
            source = ["-p", "source", str(data)] if notebook.stem == "00_download" else []
            command = [fraudnb, "run", notebook.stem, "--name", "bench", *source]
            usage[notebook.stem] = one = measure(command, project, project / f"{notebook.stem}.log", env)
            print(f"{notebook.stem}: {one.seconds:.1f} s, {one.tree:,.0f} MiB", file=sys.stderr, flush=True)
    return usage


def medians(runs: Sequence[dict[str, Usage]]) -> dict[str, Usage]:
    """The median of each figure of each notebook over `runs`."""
    return {
        name: Usage(*(statistics.median(getattr(run[name], one.name) for run in runs) for one in fields(Usage)))
        for name in runs[0]
    }


def markdown_table(usage: dict[str, Usage]) -> str:
    """The table of `usage`: a row per notebook, then the sum of the times and the largest of the peaks."""
    total = Usage(
        sum(one.seconds for one in usage.values()),
        sum(one.cpu for one in usage.values()),
        max(one.tree for one in usage.values()),
        max(one.kernel for one in usage.values()),
    )
    rows = [
        f"| {name} | {one.seconds:.1f} | {one.cpu:.1f} | {one.tree:,.0f} | {one.kernel:,.0f} |"
        for name, one in (usage | {"total (memory: largest)": total}).items()
    ]
    head = [
        "| notebook | wall s | CPU s | peak MiB, tree (PSS) | peak MiB, kernel (RSS) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join(head + rows)


def metrics_line(project: Path) -> str:
    """The metrics that show whether the run has learned anything."""
    numbers = json.loads((project / "runs" / "bench" / "metrics.json").read_text())
    return ", ".join(f"{name} {numbers[name]:,.6g}" for name in SHOWN_METRICS)


def benchmark(folder: Path, rows: int, data: Path | None, repeats: int) -> str:
    """Measure `repeats` runs on the CSV file `data`, or else on `rows` synthetic ones; what to print of it."""
    project = make_project(folder)
    source = data or folder / "transactions.csv"
    if not data:
        print(f"writing {rows:,} synthetic transactions to {source}", file=sys.stderr, flush=True)
        write_csv(source, rows)
    runs = [run_pipeline(project, source) for _ in range(repeats)]
    title = data.name if data else f"{rows:,} synthetic rows"
    size = f"{source.stat().st_size / 1e6:,.0f} MB of CSV"
    what = f"medians of {repeats} runs" if repeats > 1 else "one run"
    return f"### {title}, {size}, {what}\n\n{markdown_table(medians(runs))}\n\n{metrics_line(project)}\n"


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="Wall time and peak memory of each of the pipeline's notebooks.")
    parser.add_argument("--rows", type=int, action="append", help="synthetic rows (default: 284807); can be repeated")
    parser.add_argument("--repeats", type=int, default=1, help="runs of which to take medians (default: 1)")
    parser.add_argument("--data", type=Path, metavar="PATH.csv", help="measure on this file instead")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this folder and leave it there")
    return parser.parse_args()


def main() -> None:
    """Measure every size asked for and print its table."""
    options = parse_arguments()
    data = options.data.resolve(strict=True) if options.data else None
    print_heading()
    for rows in [0] if data else options.rows or [284_807]:
        made = 0 if data else rows * CSV_BYTES_PER_ROW
        needed = made + ROOM_PER_CSV_BYTE * (data.stat().st_size if data else made)
        keep = options.keep / (data.stem if data else str(rows)) if options.keep else None
        with scratch_folder(keep, needed) as folder:
            print(benchmark(folder, rows, data, options.repeats), flush=True)


if __name__ == "__main__":
    main()
