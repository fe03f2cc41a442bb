"""Measure `fraudnb serve`: the API beside the article's endpoint, the page beside plain Voila, memory of 20 visitors.

    python bench/serve.py                                             # all, on the built-in sample
    python bench/serve.py --data TRANSACTIONS.parquet                 # trained on, and scored: the table's own rows
    python bench/serve.py --only row,csv,page,visitors,visits,loads --requests 300

The model is a random forest of 500 trees, the same on both sides: pickled, in FastAPI with pandas (serve_article.py,
one uvicorn worker), and exported to ONNX. It needs `pip install fastapi uvicorn`, and Chromium. Sides alternate; times
are wall seconds as a client sees them, on loopback. Memory is proportional (PSS) and counts server, zygote and kernels.

row       one transaction a request: `--requests` times a side, the sides taking turns at every one; then as many as one
          client gets answered, the sides taking turns every second
csv       `--rows` rows as one CSV; memory is sampled every 0.1 s
page      navigation to the first visible widget, 10 visits a side: plain Voila with a kernel that imports pandas,
          scikit-learn and seaborn; plain Voila with one slider; this one
visitors  20 open pages, and for each a file of 1,000 rows sent by the API
visits    200 visits one after the other; kernels 30 s after, memory before and after
loads     100 visits: how many finish
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import pickle
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from common import (
    BIN,
    PAGE,
    ROOT,
    Server,
    alternate,
    ask,
    chromium,
    family,
    first_widget,
    markdown,
    median_and_range,
    memory,
    print_heading,
    proc_bytes,
    running,
    send_csv,
)
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline

from fraudnb.model import make_self_test, save_bundle
from fraudnb.sample import sample_transactions
from fraudnb.train import reference_quantiles, to_onnx

INPUTS = [*(f"V{number}" for number in range(1, 29)), "Amount"]
HEAVY = "import pandas, sklearn.ensemble, seaborn"
SLIDER = "import ipywidgets\n\nipywidgets.FloatSlider()"


def read_data(path: Path | None, rows: int) -> pd.DataFrame:
    """`rows` transactions of the table at `path`, drawn again if it has fewer, or of the sample."""
    table = pd.read_parquet(path) if path else pd.concat(sample_transactions(rows), ignore_index=True)
    return table if len(table) == rows else table.sample(rows, replace=True, random_state=0)


def make_models(folder: Path, table: pd.DataFrame, trees: int) -> None:
    """The same forest as `model.pkl` and as the bundle `model`."""
    matrix = table[INPUTS].to_numpy(np.float32)
    forest = RandomForestClassifier(trees, n_jobs=-1, random_state=0).fit(matrix[:60_000], table["Class"][:60_000])
    forest.n_jobs = 1
    (folder / "model.pkl").write_bytes(pickle.dumps((forest, INPUTS)))
    onnx = to_onnx(make_pipeline(forest), len(INPUTS))
    features = INPUTS[:-1]
    roles = {
        "time": "Time",
        "amount": "Amount",
        "label": "Class",
        "weight": "weight",
        "entity": "",
        "features": features,
    }
    card = {"name": "forest", "inputs": INPUTS, "schema": roles, "threshold": 0.5}
    card["reference_quantiles"] = reference_quantiles(matrix, INPUTS, np.ones(len(matrix)))
    save_bundle(folder / "model", onnx, card | {"self_test": make_self_test(onnx, card["reference_quantiles"], INPUTS)})


class Ports:
    """The ports of the servers."""

    ours, article, heavy, slider = 8901, 8902, 8903, 8904


def ours(folder: Path, env: dict[str, str], **limits: str):
    """`fraudnb serve` with the forest."""
    command = [BIN / "fraudnb", "serve", "--port", str(Ports.ours), "--model", str(folder / "model")]
    return running(command, Ports.ours, "/readyz", env | limits, folder / "ours.log")


def article(folder: Path, env: dict[str, str]):
    """The article's endpoint with the forest."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "serve_article:app",
        "--port",
        str(Ports.article),
        "--log-level",
        "error",
    ]
    env = env | {
        "MODEL": str(folder / "model.pkl"),
        "PYTHONPATH": f"{ROOT / 'bench'}{os.pathsep}{env.get('PYTHONPATH', '')}",
    }
    return running(command, Ports.article, "/docs", env, folder / "article.log")


def voila(folder: Path, name: str, source: str, port: int, env: dict[str, str]):
    """Plain Voila with a notebook of one cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / f"{name}.ipynb")
    command = [BIN / "voila", folder / f"{name}.ipynb", "--no-browser", f"--port={port}"]
    return running(command, port, "/voila/static/voila.js", env, folder / f"{name}.log")


def measure_rows(folder: Path, env: dict[str, str], table: pd.DataFrame, requests: int) -> list[list[str]]:
    """Rows of the table for one transaction a request."""
    bodies = [json.dumps([row]).encode() for row in table[INPUTS].head(100).to_dict("records")]
    with article(folder, env), ours(folder, env), contextlib.ExitStack() as stack:
        sides = {}
        for name, port, path in (("article", Ports.article, "/predict"), ("fraudnb", Ports.ours, "/api/score")):
            connection, turn = http.client.HTTPConnection("127.0.0.1", port), itertools.cycle(bodies)
            stack.callback(connection.close)
            sides[name] = lambda c=connection, p=path, t=turn: ask(c, p, next(t))
        alternate(sides, 10)
        found = alternate(sides, requests)
        rates = alternate({name: lambda call=call: answered(call) for name, call in sides.items()}, 10)
    a, b = (np.array(found[name]) * 1000 for name in ("article", "fraudnb"))
    lines = []
    for what, pick in (("p50", 50), ("p99", 99)):
        x, y = np.percentile(a, pick), np.percentile(b, pick)
        lines.append([f"one transaction, {what}, ms", f"{x:.1f}", f"{y:.2f}", f"{x / y:.0f} times"])
    x, y = (statistics.median(rates[name]) for name in ("article", "fraudnb"))
    shown = [median_and_range(rates[name], 0) for name in ("article", "fraudnb")]
    return [*lines, ["transactions a second, one client", *shown, f"{y / x:.0f} times"]]


def answered(call: Callable[[], float], seconds: float = 1.0) -> float:
    """How many requests that `call` makes are answered a second, one after the other for `seconds`."""
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        call()
        count += 1
    return count / passed


def measure_csv(folder: Path, env: dict[str, str], table: pd.DataFrame, repeats: int) -> list[list[str]]:
    """Rows of the table for a whole CSV."""
    file = folder / "rows.csv"
    table.drop(columns="weight", errors="ignore").to_csv(file, index=False)
    with article(folder, env) as other, ours(folder, env) as this:
        peaks = {}

        def side(name: str, process: Server, port: int, path: str) -> Callable:
            def send() -> tuple[float, float]:
                idle, most, ended = memory(process), [0.0], threading.Event()

                def sample() -> None:
                    while not ended.wait(0.1):
                        most[0] = max(most[0], memory(process))

                watching = threading.Thread(target=sample)
                watching.start()
                try:
                    return send_csv(port, path, file)
                finally:
                    ended.set()
                    watching.join()
                    peaks.setdefault(name, []).append(most[0] - idle)

            return send

        time.sleep(5)
        sides = {"article": side("article", other, Ports.article, "/predict_csv")}
        sides["fraudnb"] = side("fraudnb", this, Ports.ours, "/api/score")
        found = alternate(sides, repeats)
    lines = []
    for at, what in ((0, "to the first byte, s"), (1, "whole, s")):
        a, b = ([one[at] for one in found[name]] for name in ("article", "fraudnb"))
        ratio = statistics.median(a) / statistics.median(b)
        lines.append(
            [f"{len(table):,} rows as CSV, {what}", median_and_range(a), median_and_range(b, 2), f"{ratio:.1f} times"]
        )
    a, b = (peaks[name] for name in ("article", "fraudnb"))
    return [
        *lines,
        ["memory above idle, MB (first, then the others)", *(", ".join(f"{x:.0f}" for x in one) for one in (a, b)), ""],
    ]


def measure_page(folder: Path, env: dict[str, str], visits: int) -> list[list[str]]:
    """Rows of the table for the page."""
    cell = f"{HEAVY}\nfrom fraudnb.page import show_page\n\nshow_page()"
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours(folder, env))
        service = json.dumps({"url": f"http://127.0.0.1:{Ports.ours}", "token": ""})
        stack.enter_context(voila(folder, "heavy", cell, Ports.heavy, env | {"FRAUDNB_SERVICE": service}))
        stack.enter_context(voila(folder, "slider", SLIDER, Ports.slider, env))
        browser = stack.enter_context(chromium())
        sides = {
            "heavy": (Ports.heavy, PAGE),
            "slider": (Ports.slider, ".jupyter-widgets"),
            "fraudnb": (Ports.ours, PAGE),
        }
        calls = {name: lambda side=side: first_widget(browser, *side) for name, side in sides.items()}
        alternate(calls, 1)
        found = alternate(calls, visits)
    mine = statistics.median(found["fraudnb"])
    lines = []
    for name, what in (("heavy", "pandas, scikit-learn, seaborn"), ("slider", "one slider")):
        ratio = mine / statistics.median(found[name])
        shown = [median_and_range(found[one], 2) for one in (name, "fraudnb")]
        lines.append([f"page to the first widget, s; Voila with {what}", *shown, f"{ratio:.2f} of it"])
    return lines


def measure_visitors(folder: Path, env: dict[str, str], table: pd.DataFrame, visitors: int = 20) -> list[list[str]]:
    """Rows of the table for many visitors at once."""
    body = table.head(1000).to_csv(index=False).encode()
    with ours(folder, env) as process, chromium() as browser:
        contexts = []
        for _ in range(visitors):
            contexts.append(browser.new_context())
            page = contexts[-1].new_page()
            page.goto(f"http://127.0.0.1:{Ports.ours}/", timeout=60_000)
            page.locator(PAGE).first.wait_for(timeout=60_000)
            (folder / "thousand.csv").write_bytes(body)
            send_csv(Ports.ours, "/api/score", folder / "thousand.csv")
        time.sleep(3)
        found = memory(process)
        parts = {one.pid: (proc_bytes(one.pid, "smaps_rollup", "Pss") or 0) >> 20 for one in family(process)}
        print(f"{len(parts)} processes, MB: {sorted(parts.values())}", file=sys.stderr)
        for context in contexts:
            context.close()
    return [[f"{visitors} visitors, proportional memory of everything, MB", "", f"{found:.0f}", "at most 512"]]


def measure_visits(folder: Path, env: dict[str, str], visits: int) -> list[list[str]]:
    """Rows of the table for visits one after the other."""
    with ours(folder, env) as process, chromium() as browser:
        for _ in range(5):
            first_widget(browser, Ports.ours)
        time.sleep(10)
        before, seconds = memory(process), [first_widget(browser, Ports.ours) for _ in range(visits)]
        time.sleep(30)
        with urllib.request.urlopen(f"http://127.0.0.1:{Ports.ours}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        left = next(line.split()[-1] for line in lines if line.startswith('fraudnb_kernels{part="visited"}'))
        after = memory(process)
    finished = sum(one < float("inf") for one in seconds)
    return [
        [f"{visits} visits: pages that finish", "", f"{finished}", ""],
        [f"{visits} visits: kernels of visitors after 30 s", "", f"{float(left):.0f}", ""],
        [f"{visits} visits: memory before and after, MB", "", f"{before:.0f}, {after:.0f}", ""],
    ]


def main() -> None:
    """Measure what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a Parquet file with Time, V1..V28, Amount, Class")
    parser.add_argument("--rows", type=int, default=284_807)
    parser.add_argument("--trees", type=int, default=500)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--visits", type=int, default=10)
    parser.add_argument("--only", default="row,csv,page,visitors,visits")
    arguments = parser.parse_args()
    print_heading()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FRAUDNB", "MODEL", "PORT"))}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}"
    parts = {
        "row": lambda: measure_rows(folder, env, table, arguments.requests),
        "csv": lambda: measure_csv(folder, env, table, arguments.repeats),
        "page": lambda: measure_page(folder, env, arguments.visits),
        "visitors": lambda: measure_visitors(folder, env, table),
        "visits": lambda: measure_visits(folder, env, 200),
        "loads": lambda: measure_visits(folder, env, 100),
    }
    with tempfile.TemporaryDirectory(prefix="serve-") as name:
        folder, table = Path(name), read_data(arguments.data, arguments.rows)
        make_models(folder, table, arguments.trees)
        for part in arguments.only.split(","):
            print(markdown(["what", "reference", "fraudnb", "ratio"], parts[part]()), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
