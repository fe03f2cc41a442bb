"""Measure `fraudnb sweep --scheduler` with 1, 2 and 4 Dask workers, and what the scheduler adds to a run.

    python bench/dask_workers.py                                # 24 runs with 1, 2 and 4 workers, 1,000 trivial runs
    python bench/dask_workers.py --data transactions.parquet    # on a table of yours (CSV or Parquet)
    python bench/dask_workers.py --workers 1 2 --runs 8 --repeats 3

The runs are those of bench/sweep.py. Scheduler and workers are `dask scheduler` and `dask worker` on loopback, each
worker a process of one thread, in an empty folder of its own; notebooks, the parts of the table and the results lie on
a real S3 server (rclone), which is started here. Workers of a cluster live long, so each has done a few other runs
before the clock starts (`--cold`: none). Efficiency is the rate per worker, as a share of the rate of one worker; with
more workers than cores it says how the cores are shared.

The scheduler's overhead is the time that 1,000 runs that do nothing take through `Client.get_executor()`, divided by
1,000, once submitted together and once one after the other.
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from common import BIN, ROOT, alternate, markdown, median_and_range, own_zygotes, print_heading, scratch_folder, timed
from distributed import Client
from sweep import ENVIRONMENT, GRID, RUNS_PER_SEED, prepare_project, sweep_arguments, sweep_records

sys.path.insert(0, str(ROOT / "tests"))
from conftest import free_port, start_rclone

TRIVIAL_RUNS = 1000
BUCKET = "bench"
WAIT_SECONDS = 120
# seeds of the runs before the clock starts, one seed a worker; the sweep itself has smaller ones
WARM_SEED = 1000


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Serve `folder` over S3 with one bucket; yields the environment for children that are to use it."""
    (folder / "store" / BUCKET).mkdir(parents=True)
    key_id, secret = "benchkeyid", "benchsecretkey"
    server, endpoint = start_rclone(folder / "store", folder / "rclone.log", key_id, secret)
    kept = {name: value for name, value in ENVIRONMENT.items() if not name.upper().startswith(("AWS_", "RCLONE_"))}
    try:
        yield kept | {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": key_id,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
        }
    finally:
        server.terminate()
        server.wait()


@contextmanager
def cluster(folder: Path, workers: int, env: Mapping[str, str]) -> Iterator[str]:
    """A Dask scheduler and `workers` workers of one thread, each in its own folder below `folder`; the address."""
    port = str(free_port())
    address = f"tcp://127.0.0.1:{port}"
    (folder / "tmp").mkdir(parents=True)
    with ExitStack() as stack:
        # what the workers fetch from S3 is kept in their temporary folder
        private = stack.enter_context(own_zygotes(env)) | {"TMPDIR": str(folder / "tmp")}
        words = ["scheduler", "--host", "127.0.0.1", "--port", port, "--dashboard-address", "127.0.0.1:0"]
        stack.enter_context(background([str(BIN / "dask"), *words], folder / "scheduler", private))
        for number in range(workers):
            words = ["worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
            stack.enter_context(background([str(BIN / "dask"), *words], folder / f"worker-{number}", private))
        with Client(address, timeout=WAIT_SECONDS) as client:
            client.wait_for_workers(workers, timeout=WAIT_SECONDS)
        yield address


@contextmanager
def background(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """`command` running in the new folder `folder`, ended at the end."""
    folder.mkdir(parents=True)
    with (folder / "output.log").open("w") as log:
        running = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield running
    finally:
        running.terminate()
        running.wait()


def sweep_seconds(folder: Path, env: Mapping[str, str], workers: int, runs: int, cold: bool) -> float:
    """Seconds that the sweep of the project in `folder` takes on a new cluster of `workers`."""
    name = f"cluster-{next(number for number in itertools.count() if not (folder / f'cluster-{number}').exists())}"
    with cluster(folder / name, workers, env) as address:
        if not cold:
            others = range(WARM_SEED, WARM_SEED + workers)
            sweep_on_cluster(folder, env, address, f"{name}-warm", others)
        return sweep_on_cluster(folder, env, address, name, range(runs // RUNS_PER_SEED))


def sweep_on_cluster(folder: Path, env: Mapping[str, str], address: str, name: str, seeds: Sequence[int]) -> float:
    """Seconds of the sweep `name` over `seeds` at the scheduler `address`; ends the program unless all is done."""
    command = [
        str(BIN / "fraudnb"),
        *sweep_arguments(GRID | {"seed": list(seeds)}),
        *("-p", "data_folder", f"s3://{BUCKET}/data/main", "--name", f"s3://{BUCKET}/{name}", "--scheduler", address),
    ]
    seconds, _ = timed(command, folder / "project", folder / f"{name}.log", env)
    done = sweep_records(folder / "store" / BUCKET / name)
    if len(done) != RUNS_PER_SEED * len(seeds):
        sys.exit(f"{name} has {len(done)} runs, not {RUNS_PER_SEED * len(seeds)}.")
    return seconds


def upload_parts(project: Path, env: Mapping[str, str]) -> None:
    """Move the prepared table and its parts into the bucket, under data/main/."""
    program = (
        "import sys; from pathlib import Path; from fraudnb.fetch import upload_data_to_s3\n"
        "for path in Path(sys.argv[1]).glob('*.parquet'):\n"
        "    upload_data_to_s3(path, sys.argv[2], f'data/main/{path.name}')"
    )
    words = [sys.executable, "-c", program, str(project / "data" / "main"), BUCKET]
    timed(words, project, project / "upload.log", env)
    shutil.rmtree(project / "data")


def trivial_run(number: int) -> int:
    """A run that does nothing."""
    return number


def overhead_seconds(address: str, runs: int) -> tuple[float, float]:
    """Seconds per trivial run through the scheduler at `address`: submitted together, and one after the other."""
    with Client(address) as client, client.get_executor(pure=False) as executor:
        executor.submit(trivial_run, -1).result()
        start = time.perf_counter()
        futures = [executor.submit(trivial_run, number) for number in range(runs)]
        if [future.result() for future in futures] != list(range(runs)):
            sys.exit("The trivial runs came back in another order.")
        together = time.perf_counter() - start
        start = time.perf_counter()
        for number in range(runs):
            executor.submit(trivial_run, number).result()
        return together / runs, (time.perf_counter() - start) / runs


def workers_table(results: dict[int, list[float]], runs: int) -> str:
    """A row per number of workers: median seconds, runs a minute, speed-up and efficiency against the fewest."""
    median = {workers: statistics.median(seconds) for workers, seconds in results.items()}
    fewest = min(median)
    rows = [
        [
            str(workers),
            median_and_range(results[workers]),
            f"{60 * runs / median[workers]:.1f}",
            f"{median[fewest] / median[workers]:.2f}",
            f"{median[fewest] * fewest / (median[workers] * workers):.0%}",
        ]
        for workers in sorted(median)
    ]
    return markdown(["workers", "wall s", "runs a minute", "speed-up", "efficiency"], rows)


def measure_overhead(folder: Path, env: Mapping[str, str], workers: int, repeats: int) -> str:
    """A table of the scheduler's overhead per run with `workers` workers."""
    with cluster(folder / "overhead", workers, env | {"PYTHONPATH": python_path()}) as address:
        measured = [overhead_seconds(address, TRIVIAL_RUNS) for _ in range(repeats)]
    rows = [
        [how, median_and_range([1000 * seconds for seconds in values], 2)]
        for how, values in zip(("submitted together", "one after the other"), zip(*measured, strict=True), strict=True)
    ]
    return markdown([f"{TRIVIAL_RUNS:,} trivial runs, {workers} workers", "ms a run"], rows)


def python_path() -> str:
    """The path on which workers find this script's functions, before whatever is on it already."""
    return os.pathsep.join([str(ROOT / "bench"), *filter(None, [os.environ.get("PYTHONPATH")])])


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="fraudnb sweep on 1, 2 and 4 Dask workers.")
    parser.add_argument("--data", type=Path, metavar="PATH", help="transactions, CSV or Parquet (default: synthetic)")
    parser.add_argument("--rows", type=int, default=46_857, help="synthetic rows (default: 46857)")
    parser.add_argument("--runs", type=int, default=24, help="runs of the sweep, a multiple of 4; 0: only the overhead")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--cold", action="store_true", help="workers that have done nothing before")
    parser.add_argument("--repeats", type=int, default=1, help="rounds of which to take medians (default: 1)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this new folder and leave it there")
    options = parser.parse_args()
    if options.runs % RUNS_PER_SEED:
        parser.error(f"--runs must be a multiple of {RUNS_PER_SEED}")
    return options


def main() -> None:
    """Measure the overhead, then the sweep with every number of workers, and print both tables."""
    options = parse_arguments()
    print_heading()
    rounds = f"medians (and ranges) of {options.repeats} rounds" if options.repeats > 1 else "one round"
    with scratch_folder(options.keep, 2e9) as folder, s3_server(folder) as env:
        print(f"### The scheduler's overhead, {rounds}\n", flush=True)
        print(measure_overhead(folder, env, max(options.workers), options.repeats) + "\n", flush=True)
        if not options.runs:
            return
        source = str(options.data.resolve(strict=True)) if options.data else f"sample:{options.rows}"
        project = prepare_project(folder / "project", source)
        upload_parts(project, env)
        sides = {
            workers: partial(sweep_seconds, folder, env, workers, options.runs, options.cold)
            for workers in options.workers
        }
        results = alternate(sides, options.repeats)
    title = options.data.name if options.data else f"{options.rows:,} synthetic rows"
    print(f"### {options.runs} runs on {title}, {rounds}\n\n{workers_table(results, options.runs)}")


if __name__ == "__main__":
    main()
