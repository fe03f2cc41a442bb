"""What the benchmarks share: scratch projects, synthetic CSV files, children that are timed, tables, machine facts."""

import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import psutil
import pyarrow as pa
import pyarrow.csv

from fraudnb.sample import sample_transactions

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# of the CSV files made here (the ULB data set has 529)
CSV_BYTES_PER_ROW = 570
# the table in Parquet and its three parts take less than the CSV file again
ROOM_PER_CSV_BYTE = 1.2
LIBRARIES = ("fraudnb", "numpy", "pandas", "pyarrow", "scikit-learn", "lightgbm", "onnxruntime", "papermill")
Result = TypeVar("Result")


def proc_bytes(pid: int, file: str, field: str) -> int | None:
    """The figure `field` of /proc/PID/`file` in bytes; None if there is none or the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def children_seconds() -> float:
    """User and system time of all processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def own_zygotes(env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield `env` with a runtime folder of its own; at the end, end what was started in it and still runs.

    The zygote of warm kernels goes on after the command that started it. With a runtime folder of its own, each
    measured command starts from nothing, and what it left running can be told from others'.
    """
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        try:
            yield {**env, "XDG_RUNTIME_DIR": folder}
        finally:
            for process in left_running(folder):
                with suppress(psutil.NoSuchProcess):  # it has ended by itself
                    process.kill()
                    process.wait()


def left_running(runtime_folder: str) -> list[psutil.Process]:
    """The processes whose command line names something in `runtime_folder`: zygotes, and kernels forked from them."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(runtime_folder in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue  # it has ended, or is not ours to look at
    return found


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system time of `processes` and of their children that have ended."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has just ended
            one = process.cpu_times()
            total += one.user + one.system + one.children_user + one.children_system
    return total


def timed(command: Sequence[str], folder: Path, log: Path, env: Mapping[str, str] = os.environ) -> tuple[float, float]:
    """Run `command` in `folder`, its output going to `log`: wall and CPU seconds; ends the program if it fails."""
    with log.open("w") as output, own_zygotes(env) as private:
        start, cpu = time.perf_counter(), children_seconds()
        done = subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=private, check=False)
        seconds, cpu = time.perf_counter() - start, children_seconds() - cpu
        cpu += cpu_seconds(left_running(private["XDG_RUNTIME_DIR"]))
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)} failed in {folder}:\n{log.read_text()}")
    return seconds, cpu


def alternate(sides: Mapping[str, Callable[[], Result]], repeats: int) -> dict[str, list[Result]]:
    """The results of calling each of `sides` `repeats` times, one side after the other in each round, by name.

    The order is turned round from round to round, so that no side always has the warmer machine.
    """
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(repeats):
        for name in sides if number % 2 == 0 else reversed(sides):
            results[name].append(sides[name]())
            print(f"round {number + 1} of {repeats}: {name} done", file=sys.stderr, flush=True)
    return results


def median_and_range(values: Sequence[float], digits: int = 1) -> str:
    """The median of `values` and, if there are several, their range in parentheses."""
    middle = f"{statistics.median(values):.{digits}f}"
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else middle


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(path: Path, rows: int) -> None:
    """Write `rows` synthetic transactions to a CSV file at `path`, block by block, and have them reach the disk."""
    with path.open("wb") as file:
        writer = None
        for block in sample_transactions(rows):
            table = pa.Table.from_pandas(block, preserve_index=False)
            writer = writer or pyarrow.csv.CSVWriter(file, table.schema)
            writer.write_table(table)
        writer.close()
        # else the first notebook would compete with the writing of this file
        os.fsync(file.fileno())


def make_project(folder: Path) -> Path:
    """A project at `folder` with the notebooks, settings, parameters and recipes of this one, and nothing else."""
    for name in ("nbs", "recipes"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    for name in ("settings.ini", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def processor() -> str:
    """The processor's name; what Python knows of it where there is no /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def machine_facts() -> str:
    """Processor, cores this process may use, memory, system, Python and the libraries that matter."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    busy = f", load {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    return (
        f"{processor()}, {cores} cores, {memory:.0f} GiB{busy}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {libraries}"
    )


def print_heading() -> None:
    """Print the command that is running and what it runs on."""
    script = Path(sys.argv[0]).name
    print(f"`{shlex.join(['python', f'bench/{script}', *sys.argv[1:]])}`\n\n{machine_facts()}\n", flush=True)


@contextmanager
def scratch_folder(keep: Path | None, needed: float) -> Iterator[Path]:
    """Yield `keep` (and leave it there) or a temporary folder; end the program if `needed` bytes do not fit."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    parent = keep or Path(tempfile.gettempdir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        sys.exit(f"{parent} has {free / 1e9:.1f} GB left, not {needed / 1e9:.1f}: set TMPDIR, or --keep elsewhere.")
    if keep:
        yield keep.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="fraudnb-bench-") as folder:
            yield Path(folder).resolve()
