"""Two builds side by side: is B slower or larger than A, and does this machine tell?

    python bench/ab.py main . serve                             # the working tree against main
    python bench/ab.py v1.0 main page --json build/page.json
    python bench/ab.py . . serve --set A:model=models/main --set B:model=models/new

A and B are each a git revision, checked out below build/ab and run in an environment of its own, installed from its own
requirements.lock; or `.`, the working tree, in this environment; with options by --set SIDE:NAME=VALUE (model, file,
store). A is the reference. BENCH is one of

serve     one transaction a request over a kept connection (p50, p99), and a CSV file of --rows rows
page      navigation to the page's first button that can be used, in Chromium, a new visitor each time
visitors  proportional memory (PSS) of the server and all its kernels with 20 pages open and 20 files scored
pipeline  `fraudnb run`, all notebooks, on a CSV file of --rows rows
sweep     `fraudnb sweep 03_train --then 04_evaluate`, four runs, two workers, on --rows rows
compare   `fraudnb diff` of two finished runs on --rows rows

Both sides run at the same time and take turns at every request, visit or run, in an order that is drawn (--seed) such
that each goes first as often as the other. They are ended and started anew for each block of turns, since what luck a
process started with stays with it. In each block the median (p99) of B over that of A, over blocks the geometric mean,
with a 95 % bootstrap interval that resamples whole blocks (bench/judge.py, with sources).

First A against a second copy of A, whose ratio is 1: where the interval misses it, the machine cannot tell, and nothing
else is measured (one in twenty misses by chance: try another --seed). Then A against B. "None worse than 1.05" is: the
interval's lower end is at most 1.05, and the interval at most .1 wide; .2 for whole runs, and for p99, whose bound is
1.2, from 20,000 requests. Blocks are added until it is (six at least), or up to --blocks: then it is not decided. An
interval wholly above the bound is worse however wide it is.

Exit code: 0 passes, 1 worse, 3 not decided (or the machine cannot tell), 2 wrong usage or a side that does not run.
Every turn is in build/ab/BENCH.csv.
"""

import argparse
import contextlib
import csv
import dataclasses
import http.client
import itertools
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from common import (
    PAGE,
    BenchError,
    Server,
    ask,
    chromium,
    first_widget,
    machine_facts,
    make_project,
    markdown,
    memory,
    print_heading,
    running,
    scratch_folder,
    send_csv,
    timed,
    write_csv,
)
from judge import HOLDS, PASSES, UNDECIDED, WORSE, Ratio, Rule, exit_code, judge, judge_same, ratio_of, turn_orders
from playwright.sync_api import Error as BrowserError
from sides import CACHE, OPTIONS, Side, make_side, read_settings
from sweep import GRID, sweep_arguments

from fraudnb.errors import near_match

Pair = tuple[Side, Side]
Orders = Iterator[tuple[int, int]]
WHOLE_RUN = Rule(width=0.2)
# a server that has just begun to answer makes kernels ready for its first visitors
SETTLE_SECONDS = 5
WARM_UP = 100
CSV_TURNS = 3
VISITORS = 20
ROWS = 20_000
STEPS = ("00_download", "02_preprocess", "03_train", "04_evaluate")


@dataclass(frozen=True)
class Measure:
    """A number that is judged: of which series of a bench's turns, by which rule."""

    name: str
    series: str
    rule: Rule = Rule()


@contextlib.contextmanager
def told_of(side: Side) -> Iterator[None]:
    """Say of an error which side it is of."""
    try:
        yield
    except (BenchError, BrowserError, OSError, http.client.HTTPException) as error:
        raise BenchError(f"{side.name} ({side.asked}): {' '.join(str(error).split())[:1000]}") from error


def take_turns(pair: Pair, calls: Sequence[Callable[[], float]], turns: int, orders: Orders) -> np.ndarray:
    """What the `calls` of both sides return, turn by turn, shape (turns, 2)."""
    found = np.empty((turns, 2))
    for turn in range(turns):
        for at in next(orders):
            with told_of(pair[at]):
                found[turn, at] = calls[at]()
    return found


def work_folder(side: Side, folder: Path) -> Path:
    """The folder below `folder` in which `side` works."""
    return folder / side.name.replace(" ", "-")


def train_model(side: Side, folder: Path, model: Path) -> None:
    """A bundle at `model` that `side` trains on the sample, by its own defaults."""
    folder.mkdir()
    project = make_project(folder, side.tree)
    command = [side.fraudnb, "run", *STEPS, "-p", "source", "sample:20000", "--name", "bench"]
    with told_of(side):
        timed(command, project, folder / "train.log", side.environment())
    # whole or not at all
    partial_model = model.with_name(f"{model.name}.{os.getpid()}")
    shutil.copytree(project / "models" / "bench", partial_model)
    partial_model.rename(model)


def with_model(a: Side, b: Side, folder: Path) -> Pair:
    """Both sides with a model to serve: of those that name none, the one that A trains, kept if A is a revision."""
    if "model" in a.options and "model" in b.options:
        return a, b
    model = folder / "model" if a.tree.parent != CACHE / "trees" else CACHE / "models" / a.tree.name
    if not model.exists():
        print(f"A ({a.asked}) trains the model that is served", file=sys.stderr, flush=True)
        model.parent.mkdir(parents=True, exist_ok=True)
        train_model(a, folder / "training", model)
    default = {"model": str(model)}
    return dataclasses.replace(a, options=default | a.options), dataclasses.replace(b, options=default | b.options)


@contextlib.contextmanager
def served(side: Side, folder: Path) -> Iterator[Server]:
    """The `fraudnb serve` of `side`, ready to answer."""
    command = [side.fraudnb, "serve", "--port", "0", "--model", side.options["model"]]
    if "store" in side.options:
        command += ["--history", side.options["store"]]
    log = work_folder(side, folder) / "serve.log"
    with contextlib.ExitStack() as stack:
        with told_of(side):
            server = stack.enter_context(running(command, 0, "/readyz", side.environment(), log))
        yield server


def try_serving(side: Side, folder: Path) -> None:
    """Start the server of `side` once: what does not start is told before anything is measured."""
    with served(side, folder):
        pass


@contextlib.contextmanager
def both_served(pair: Pair, folder: Path, orders: Orders) -> Iterator[list[Server]]:
    """Both sides' servers, started anew in an order that is drawn."""
    with contextlib.ExitStack() as stack:
        servers = {at: stack.enter_context(served(pair[at], folder)) for at in next(orders)}
        time.sleep(SETTLE_SECONDS)
        yield [servers[0], servers[1]]


def scored_file(side: Side, folder: Path) -> Path:
    """The CSV file that `side` scores or trains on: its option, or the sample's."""
    return Path(side.options.get("file", folder / "transactions.csv"))


def serve_block(pair: Pair, folder: Path, orders: Orders, turns: int) -> dict[str, np.ndarray]:
    """One transaction a request, then whole CSV files, by servers started anew."""
    with both_served(pair, folder, orders) as servers, contextlib.ExitStack() as stack:
        single, whole = [], []
        for side, server in zip(pair, servers, strict=True):
            connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)))
            file = scored_file(side, folder)
            rows = pd.read_csv(file, nrows=100).to_dict("records")
            bodies = itertools.cycle([json.dumps([row]).encode() for row in rows])
            single.append(lambda c=connection, b=bodies: ask(c, "/api/score", next(b)))
            whole.append(lambda p=server.port, f=file: send_csv(p, "/api/score", f)[1])
        take_turns(pair, single, WARM_UP, orders)
        row = take_turns(pair, single, turns, orders) * 1000
        take_turns(pair, whole, 1, orders)
        return {"row": row, "csv": take_turns(pair, whole, CSV_TURNS, orders)}


def page_block(pair: Pair, folder: Path, orders: Orders, turns: int) -> dict[str, np.ndarray]:
    """Visits of the page, by servers started anew."""
    with both_served(pair, folder, orders) as servers, chromium() as browser:
        calls = [partial(first_widget, browser, server.port) for server in servers]
        for side, call in zip(pair, calls, strict=True):
            if math.isinf(call()):
                raise BenchError(f"{side.name} ({side.asked}): the page shows no button ({PAGE}) within a minute.")
        return {"visit": take_turns(pair, calls, turns, orders)}


def visitors_block(pair: Pair, folder: Path, orders: Orders, turns: int) -> dict[str, np.ndarray]:
    """Memory in MB with `VISITORS` pages open at either side, of servers started anew."""
    with both_served(pair, folder, orders) as servers, chromium() as browser:
        for side in pair:
            thousand = pd.read_csv(scored_file(side, folder), nrows=1000)
            thousand.to_csv(work_folder(side, folder) / "thousand.csv", index=False)

        def visit(side: Side, server: Server) -> float:
            page = browser.new_context().new_page()
            page.set_default_timeout(180_000)  # what is judged is memory: forty pages may keep a machine busy
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.locator(PAGE).first.wait_for()
            return send_csv(server.port, "/api/score", work_folder(side, folder) / "thousand.csv")[1]

        take_turns(pair, [partial(visit, *one) for one in zip(pair, servers, strict=True)], VISITORS, orders)
        time.sleep(3)
        return {"memory": take_turns(pair, [partial(memory, server) for server in servers], turns, orders)}


def prepare_project(side: Side, folder: Path, commands: Sequence[Sequence[str]]) -> None:
    """A project of the side's own notebooks, in which `commands` of fraudnb have been run."""
    project = make_project(work_folder(side, folder), side.tree)
    source = ["-p", "source", str(scored_file(side, folder))]
    with told_of(side):
        for command in commands:
            timed([side.fraudnb, *command, *source], project, project / "prepare.log", side.environment())


def run_block(
    pair: Pair, folder: Path, orders: Orders, turns: int, arguments: Callable[[Side, Path], Sequence[str]]
) -> dict[str, np.ndarray]:
    """Seconds of the command with `arguments`, each time from nothing."""

    def run(side: Side) -> float:
        project = work_folder(side, folder)
        command = [side.fraudnb, *arguments(side, project)]
        return timed(command, project, project / "run.log", side.environment())[0]

    return {"run": take_turns(pair, [partial(run, side) for side in pair], turns, orders)}


def pipeline_arguments(side: Side, project: Path) -> list[str]:
    """`fraudnb run` of all notebooks on the side's table."""
    return ["run", "-p", "source", str(scored_file(side, project.parent)), "--name", "bench"]


def new_sweep_arguments(side: Side, project: Path) -> list[str]:
    """`fraudnb sweep` of four runs under a new name, so that none is done already."""
    number = len(list((project / "runs").glob("sweep-*")))
    return [*sweep_arguments(GRID | {"seed": [0]}), "--name", f"sweep-{number}", "--workers", "2"]


def diff_arguments(side: Side, project: Path) -> list[str]:
    """`fraudnb diff` of the two runs that were prepared."""
    return ["diff", "runs/a", "runs/b"]


@dataclass(frozen=True)
class Bench:
    """What is measured, how a block is taken, with which options, turns, and blocks at most; how a side is prepared."""

    measures: tuple[Measure, ...]
    block: Callable[[Pair, Path, Orders, int], dict[str, np.ndarray]]
    options: tuple[str, ...]
    turns: int = 1
    blocks: int = 40
    prepare: Callable[[Side, Path], None] = try_serving


def whole_run(name: str, arguments: Callable[[Side, Path], Sequence[str]], commands: Sequence[Sequence[str]]) -> Bench:
    """The bench of a command, run from its start to its end, in projects in which `commands` were run before."""
    return Bench(
        (Measure(f"{name}, s", "run", WHOLE_RUN),),
        partial(run_block, arguments=arguments),
        ("file",),
        prepare=partial(prepare_project, commands=commands),
    )


BENCHES = {
    "serve": Bench(
        (
            Measure("one row, p50, ms", "row"),
            Measure("one row, p99, ms", "row", Rule(quantile=0.99, bound=1.2, width=0.2, turns=20_000)),
            Measure("CSV, s", "csv"),
        ),
        serve_block,
        ("model", "file", "store"),
        turns=1000,
        blocks=60,
    ),
    "page": Bench((Measure("first button, s", "visit"),), page_block, ("model", "store"), turns=4),
    "visitors": Bench(
        (Measure(f"{VISITORS} visitors, MB", "memory"),),
        visitors_block,
        ("model", "file", "store"),
        blocks=15,
    ),
    "pipeline": whole_run("fraudnb run", pipeline_arguments, []),
    "sweep": whole_run("fraudnb sweep", new_sweep_arguments, [["run", *STEPS[:2]]]),
    "compare": whole_run(
        "fraudnb diff",
        diff_arguments,
        [["run", *STEPS, "--name", name, "-p", "seed", str(seed)] for seed, name in enumerate("ab")],
    ),
}


@dataclass(frozen=True)
class Plan:
    """How a pair is measured: how a block is taken, where, with how many turns, how many blocks at most, the seed."""

    block: Callable[[Pair, Path, Orders, int], dict[str, np.ndarray]]
    folder: Path
    turns: int
    blocks: int
    seed: int


def measure(
    pair: Pair, measures: Sequence[Measure], plan: Plan, judged: Callable[[Ratio, Rule], str], log: Path
) -> dict[str, tuple[Ratio, str]]:
    """Blocks of `pair` until all of `measures` are judged, or as many as the plan allows: ratios and verdicts."""
    blocks: list[dict[str, np.ndarray]] = []
    orders = turn_orders(plan.seed)
    found: dict[str, tuple[Ratio, str]] = {}
    while len(blocks) < plan.blocks and (not found or any(verdict == UNDECIDED for _, verdict in found.values())):
        start = time.perf_counter()
        blocks.append(plan.block(pair, plan.folder, orders, plan.turns))
        write_turns(log, pair, len(blocks), blocks[-1])
        for one in measures:
            ratio = ratio_of([block[one.series] for block in blocks], one.rule.quantile, plan.seed)
            found[one.name] = (ratio, judged(ratio, one.rule))
        took = f"{time.perf_counter() - start:.0f} s"
        said = "; ".join(
            f"{name} {one.ratio:.3f} ({one.low:.3f} to {one.high:.3f})" for name, (one, _) in found.items()
        )
        print(f"{label(pair)}, block {len(blocks)}, {took}: {said}", file=sys.stderr, flush=True)
    return found


def label(pair: Pair) -> str:
    """Who is measured against whom, as the ratio is read."""
    return f"{pair[1].name} / {pair[0].name}"


def write_turns(path: Path, pair: Pair, block: int, series: Mapping[str, np.ndarray]) -> None:
    """Add the turns of a block to the CSV file at `path`."""
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        for name, turns in series.items():
            writer.writerows([label(pair), block, name, turn, *pair_of] for turn, pair_of in enumerate(turns.tolist()))


def table(pair: Pair, measures: Sequence[Measure], found: Mapping[str, tuple[Ratio, str]], asked: str) -> str:
    """The printed table of `pair`; `asked` is what is asked of the ratio, for a rule."""
    head = ["", *(side.name for side in pair), label(pair), "95 % interval", "asked", "turns", "blocks", "verdict"]
    rows = []
    for one in measures:
        ratio, verdict = found[one.name]
        values = [f"{ratio.a:.4g}", f"{ratio.b:.4g}", f"{ratio.ratio:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"]
        goal = asked.format(bound=one.rule.bound, width=one.rule.width)
        rows.append([one.name, *values, goal, f"{ratio.turns:,}", str(ratio.blocks), verdict])
    return markdown(head, rows)


def records(pair: Pair, measures: Sequence[Measure], found: Mapping[str, tuple[Ratio, str]]) -> list[dict[str, Any]]:
    """The rows of the table as flat records; what is not finite is None."""
    rows = []
    for one in measures:
        ratio, verdict = found[one.name]
        numbers = {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(ratio).items()}
        asked = {"quantile": one.rule.quantile, "bound": one.rule.bound, "width": one.rule.width}
        rows.append({"measure": one.name, "pair": label(pair), **numbers, **asked, "verdict": verdict})
    return rows


def sentence(verdicts: Mapping[str, str]) -> str:
    """What has been found, for somebody who reads one line."""
    worse = "; ".join(name for name, one in verdicts.items() if one == WORSE)
    left = "; ".join(f"{name}: {one}" for name, one in verdicts.items() if one not in (WORSE, PASSES))
    if not worse and not left:
        return "B passes."
    return " ".join([f"B is worse: {worse}."] * bool(worse) + [f"B is not judged: {left}."] * bool(left))


class Parser(argparse.ArgumentParser):
    """A parser that says in one paragraph what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise BenchError(f"{message[0].upper()}{message[1:]}. See bench/ab.py --help.")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options in the command line `words`."""
    options = "; ".join(f"{name}: {what}" for name, what in OPTIONS.items())
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="the reference: a git revision, or . for the working tree")
    parser.add_argument("b", metavar="B", help="what is judged")
    parser.add_argument("bench", metavar="BENCH", help=", ".join(BENCHES))
    parser.add_argument("--set", action="append", default=[], metavar="SIDE:NAME=VALUE", help=options)
    parser.add_argument("--blocks", type=positive, help="blocks at most (default: as the bench needs)")
    parser.add_argument("--turns", type=positive, help="turns a block (default: as the bench needs)")
    parser.add_argument("--rows", type=positive, help="of the table that is scored or trained on (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns and of the bootstrap (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to this file, too")
    return parser.parse_args(words)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure A against A and A against B, print both tables, and return all that was found."""
    if arguments.bench not in BENCHES:
        raise BenchError(
            f"No bench {arguments.bench!r}.{near_match(arguments.bench, BENCHES)} There are {', '.join(BENCHES)}."
        )
    bench, started = BENCHES[arguments.bench], time.perf_counter()
    settings = read_settings(arguments.set, bench.options)
    a, b = (make_side(name, getattr(arguments, name.lower()), settings[name]) for name in "AB")
    print_heading()
    if "model" in bench.options:
        a, b = with_model(a, b, folder)
    again = dataclasses.replace(a, name="A again")
    write_csv(folder / "transactions.csv", arguments.rows or ROWS)
    for side in (a, b):
        work_folder(side, folder).mkdir()
        bench.prepare(side, folder)
    shutil.copytree(work_folder(a, folder), work_folder(again, folder))
    log = CACHE / f"{arguments.bench}.csv"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("pair,block,series,turn,a,b\n")
    plan = Plan(bench.block, folder, arguments.turns or bench.turns, arguments.blocks or bench.blocks, arguments.seed)
    same = measure((a, again), bench.measures, plan, judge_same, log)
    verdicts = {name: verdict for name, (_, verdict) in same.items()}
    print(f"{table((a, again), bench.measures, same, '1, {width} wide')}\n", flush=True)
    rows = records((a, again), bench.measures, same)
    # what the machine cannot tell of A and A it cannot tell of A and B
    if measures := [one for one in bench.measures if verdicts[one.name] == HOLDS]:
        found = measure((a, b), measures, plan, judge, log)
        verdicts |= {name: verdict for name, (_, verdict) in found.items()}
        print(f"{table((a, b), measures, found, '≤ {bound}, {width} wide')}\n", flush=True)
        rows += records((a, b), measures, found)
    seconds = round(time.perf_counter() - started, 1)
    print(f"{sentence(verdicts)} ({seconds:,.0f} s; every turn is in {log})")
    sides = {side.name: {"revision": side.asked, **side.options} for side in (a, b)}
    head = {"bench": arguments.bench, **sides, "seed": arguments.seed, "machine": machine_facts(), "seconds": seconds}
    return head | {"rows": rows, "verdicts": verdicts, "exit_code": exit_code(list(verdicts.values()))}


def main(words: Sequence[str]) -> int:
    """Print what was found; the exit code."""
    try:
        arguments = parse_arguments(words)
        with scratch_folder(None, 1e9) as folder:
            found = compare(arguments, folder)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    except (BenchError, OSError) as error:
        print(f"bench/ab.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return int(found["exit_code"])


if __name__ == "__main__":
    # servers are ended, too, when somebody ends this
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
