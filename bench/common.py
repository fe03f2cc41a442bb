"""What the benchmarks share: scratch projects, synthetic CSV files, children that are timed, servers that are asked,
a browser that visits, tables, machine facts."""

import http.client
import json
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
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import pyarrow as pa
import pyarrow.csv
from playwright.sync_api import Browser, sync_playwright

from fraudnb.sample import sample_transactions

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# of the CSV files made here (the ULB data set has 529)
CSV_BYTES_PER_ROW = 570
# the table in Parquet and its three parts take less than the CSV file again
ROOM_PER_CSV_BYTE = 1.2
LIBRARIES = ("fraudnb", "numpy", "pandas", "pyarrow", "scikit-learn", "lightgbm", "onnxruntime", "papermill")
# the first thing on our page that can be used, with its kernel connected
PAGE = "main.fraudnb[data-ready] button"
START_SECONDS = 120
Result = TypeVar("Result")


class BenchError(SystemExit):
    """A benchmark cannot go on: one paragraph, which ends the program unless somebody takes it up."""


class Server(NamedTuple):
    """A server that answers at `port`, and the runtime folder of its own."""

    process: subprocess.Popen
    runtime: str
    port: int


def last_line(log: Path) -> str:
    """The last line of the file `log` that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "it said nothing"


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
        raise BenchError(f"{shlex.join(command)} failed in {folder}: {last_line(log)}")
    return seconds, cpu


@contextmanager
def running(command: Sequence[str | Path], port: int, path: str, env: Mapping[str, str], log: Path) -> Iterator[Server]:
    """A server that `command` starts and that answers at `path` of `port`; port 0: of the one that it logs."""
    with own_zygotes(env) as private, log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=private, cwd=log.parent)
        try:
            port = wait_until_it_answers(process, port, path, log)
            yield Server(process, private["XDG_RUNTIME_DIR"], port)
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_it_answers(process: subprocess.Popen, port: int, path: str, log: Path) -> int:
    """The port at which the server `process` answers; ends the program if it ends before, or never does."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        port = port or logged_port(log)
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60):
            return port
        if process.poll() is not None:
            raise BenchError(f"{shlex.join(map(str, process.args))} ended before it answered: {last_line(log)}")
        time.sleep(0.1)
    raise BenchError(f"{shlex.join(map(str, process.args))} did not answer within {START_SECONDS} s: {last_line(log)}")


def logged_port(log: Path) -> int:
    """The port that `fraudnb serve` says in its log that it listens at; 0 if it does not say so yet."""
    # the last line may be half written
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and '"listening"' in line:
            return int(json.loads(line)["port"])
    return 0


def family(server: Server) -> list[psutil.Process]:
    """The processes of a server: itself, those below it, and those that were started in its runtime folder."""
    found = {server.process.pid, *(one.pid for one in psutil.Process(server.process.pid).children(recursive=True))}
    found.update(one.pid for one in left_running(server.runtime))
    return [psutil.Process(pid) for pid in found if psutil.pid_exists(pid)]


def memory(server: Server) -> float:
    """Proportional memory in MB of a server and all that belongs to it."""
    return sum(proc_bytes(one.pid, "smaps_rollup", "Pss") or 0 for one in family(server)) / 2**20


def ask(connection: http.client.HTTPConnection, path: str, body: bytes) -> float:
    """Seconds that one request takes."""
    start = time.perf_counter()
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    seconds = time.perf_counter() - start
    expect_ok(path, answer.status, said)
    return seconds


def send_csv(port: int, path: str, file: Path) -> tuple[float, float]:
    """Seconds to the first byte of the answer's body, and to its end."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600, blocksize=1 << 18)) as connection:
        start = time.perf_counter()
        with open(file, "rb") as body:
            headers = {"Content-Type": "text/csv", "Content-Length": str(file.stat().st_size)}
            connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            expect_ok(path, answer.status, answer.read())
        answer.read(1)
        first = time.perf_counter() - start
        while answer.read(1 << 20):
            pass
        return first, time.perf_counter() - start


def expect_ok(path: str, status: int, said: bytes) -> None:
    """End the program unless `status` is 200."""
    if status != 200:
        raise BenchError(f"{path} answered {status}: {' '.join(said[:500].decode(errors='replace').split())}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium, as it is on the PATH."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        raise BenchError("No Chromium on the PATH. On Debian: apt install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


def first_widget(browser: Browser, port: int, widget: str = PAGE) -> float:
    """Seconds from navigation to the first visible `widget`, as a new visitor; infinite after 60 s."""
    context = browser.new_context()
    page = context.new_page()
    start = time.perf_counter()
    try:
        page.goto(f"http://127.0.0.1:{port}/", wait_until="commit", timeout=60_000)
        page.locator(widget).first.wait_for(timeout=60_000)
        return time.perf_counter() - start
    except Exception as error:
        print(f"a page of port {port} did not finish: {str(error).splitlines()[0][:80]}", file=sys.stderr)
        return float("inf")
    finally:
        context.close()
        time.sleep(1)


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


def make_project(folder: Path, root: Path = ROOT) -> Path:
    """A project at `folder` with the notebooks, settings, parameters and recipes of `root`, and nothing else."""
    for name in ("nbs", "recipes"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    for name in ("settings.ini", "params.yaml"):
        shutil.copy(root / name, folder / name)
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
        raise BenchError(
            f"{parent} has {free / 1e9:.1f} GB left, not {needed / 1e9:.1f}: set TMPDIR, or --keep elsewhere."
        )
    if keep:
        yield keep.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="fraudnb-bench-") as folder:
            yield Path(folder).resolve()
