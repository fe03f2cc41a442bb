"""Answers of an earlier day, held against today's: metrics of the sample, 500 rows through the command and the API, and
a bundle that must be read and score alike from now on. tests/frozen/README.md says what each file is.

What was there must be as it was; a key, column or metric more is no change. After a change that was meant,
`UPDATE_FROZEN=1 pytest tests/test_frozen.py` writes the answers anew.
"""

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import PACKAGE_ROOT, mostly_thorough
from project import STEPS, command, make_project
from serving import Server, serving
from test_compare import CASES, COMMENTS

from fraudnb.model import load_model, predict_probability

FROZEN = Path(__file__).parent / "frozen"
ROWS = FROZEN / "rows.csv"
# probabilities are float32; metrics have six digits, the last of which another processor may round otherwise
CLOSE = {"rel_tol": 1e-6, "abs_tol": 1e-6}
ROUNDED = {"rel_tol": 1e-5, "abs_tol": 1e-9}


def changes(was: Any, now: Any, close: dict[str, float] = CLOSE, place: str = "") -> list[str]:
    """Where `now` is not what `was` is, each as "place: old, now new"; what only `now` has is no change."""
    if isinstance(was, dict) and isinstance(now, dict):
        gone = [f"{place}/{name}: gone" for name in was if name not in now]
        return gone + [
            one for name in was if name in now for one in changes(was[name], now[name], close, f"{place}/{name}")
        ]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [
            one
            for number, pair in enumerate(zip(was, now, strict=True))
            for one in changes(*pair, close, f"{place}/{number}")
        ]
    if isinstance(was, float) and isinstance(now, float) and math.isclose(was, now, **close):
        return []
    return [] if was == now and type(was) is type(now) else [f"{place}: {was!r:.200}, now {now!r:.200}"]


def table(text: str) -> list[dict[str, Any]]:
    """The rows of a CSV; `probability` as a number, all else as it stands. The order of columns is that of the keys."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    return [row | {"probability": float(row["probability"])} for row in rows]


def hold(name: str, now: str, close: dict[str, float] = CLOSE) -> None:
    """Fail where the answer `now` has changed from the file `name`, by whose ending both are read."""
    path = FROZEN / name
    if os.environ.get("UPDATE_FROZEN"):
        path.write_text(now, encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as file:
        was = file.read()
    read = {
        ".json": json.loads,
        ".csv": table,
        ".ndjson": lambda text: [json.loads(line) for line in text.splitlines()],
    }
    before, after = read[path.suffix](was), read[path.suffix](now)
    assert not (found := changes(before, after, close)), f"{name} has changed:\n" + "\n".join(found[:20])
    if path.suffix == ".csv":
        assert [column for column in after[0] if column in before[0]] == list(before[0]), (
            f"{name}: columns in another order"
        )


def test_what_counts_as_a_change():
    """A key more is none, the last bit is none; a key less, another order, text, type or length is."""
    was = {"a": 1, "rows": [{"p": 0.5, "id": "007"}, {"p": 0.25, "id": "8"}]}
    assert not changes(was, was | {"format": 1})
    assert not changes(was, {"a": 1, "rows": [{"p": 0.5 + 1e-9, "id": "007", "new": 1}, was["rows"][1]]})
    assert changes(was, {"rows": was["rows"]}) == ["/a: gone"]
    assert changes(was, was | {"a": 1.0}) == ["/a: 1, now 1.0"] and changes(was, was | {"a": True})
    assert changes(was, was | {"rows": was["rows"][::-1]}) and changes(was, was | {"rows": was["rows"][:1]})
    assert changes({"p": 0.5}, {"p": 0.50001}) == ["/p: 0.5, now 0.50001"] and changes({"p": 0.5}, {"p": math.nan})


# -- metrics


def test_metrics_of_a_small_run(small_run):
    """`fraudnb metrics --json` of 20,000 rows of the sample."""
    done = command(small_run, "metrics", "--json")
    assert done.returncode == 0, done.stderr
    hold("metrics_small.json", done.stdout, ROUNDED)


def test_metrics_that_git_has():
    """The README's numbers: those of the whole sample."""
    hold("metrics_sample.json", (PACKAGE_ROOT / "runs/main/metrics.json").read_text(encoding="utf-8"), ROUNDED)


@pytest.mark.thorough
@pytest.mark.long
def test_metrics_of_the_whole_sample(tmp_path):
    """The pipeline as `make run` runs it prints the numbers that git has."""
    values = (PACKAGE_ROOT / "params.yaml").read_text(encoding="utf-8")
    project = make_project(tmp_path / "project", values)
    done = command(project, "run", *STEPS)
    assert done.returncode == 0, done.stderr
    hold("metrics_sample.json", (project / "runs/main/metrics.json").read_text(encoding="utf-8"), ROUNDED)


# -- 500 rows


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    """The frozen bundle by its policy: one threshold, or each transaction's amount."""
    place = tmp_path_factory.mktemp("bundles")
    found = {name: Path(shutil.copytree(FROZEN / "bundle", place / name)) for name in ("threshold", "amount")}
    shutil.copy(FROZEN / "evaluation_per_amount.json", found["amount"] / "evaluation.json")
    return found


@pytest.fixture(scope="module", params=mostly_thorough(["threshold", "amount"], ["threshold"]))
def served(request, bundles, tmp_path_factory) -> Iterator[tuple[str, Server]]:
    """A policy's name, and a server with its bundle."""
    with serving(tmp_path_factory.mktemp("served") / "log", bundles[request.param], FRAUDNB_READY_PAGES="1") as server:
        yield request.param, server


@pytest.mark.parametrize("policy", ["threshold", "amount"])
def test_command(bundles, tmp_path, policy):
    """`fraudnb score` on the CSV: every row and column in order, with probability and decision."""
    out = tmp_path / "scored.csv"
    done = command(tmp_path, "score", ROWS, "--model", bundles[policy], "--out", out)
    assert done.returncode == 0, done.stderr
    with out.open(encoding="utf-8", newline="") as file:
        hold(f"scored_by_{policy}.csv", file.read())


def test_api_csv(served):
    """The same file sent to the API comes back as the command gives it."""
    policy, server = served
    answer = server.score(ROWS.read_bytes(), Content_Type="text/csv")
    assert answer.status == 200, answer.body
    hold(f"scored_by_{policy}.csv", answer.body.decode())


def records() -> list[dict[str, Any]]:
    """The 500 rows as JSON has them: without the remarks, which no model knows."""
    rows = pd.read_csv(ROWS, dtype={"id": str}).drop(columns="remark")
    return rows.to_dict("records")


def test_api_json(served):
    policy, server = served
    answer = server.score(records())
    assert answer.status == 200, answer.body
    hold(f"answer_by_{policy}.json", json.dumps(answer.json(), indent=0))


def test_api_ndjson(served):
    policy, server = served
    answer = server.score(records(), Accept="application/x-ndjson")
    assert answer.status == 200, answer.body
    hold(f"answer_by_{policy}.ndjson", answer.body.decode())


def test_api_reasons_and_a_threshold_of_the_request(served):
    policy, server = served
    answer = server.score(records()[:20], "?reasons=3&threshold=0.01")
    assert answer.status == 200, answer.body
    hold("answer_with_reasons.json", json.dumps(answer.json(), indent=0))


# -- the comments, which test_compare.py compares


def test_no_comment_is_left_out():
    assert sorted(path.stem for path in COMMENTS.glob("*.md")) == sorted([*CASES, "broken_base"])
    assert len(CASES) == 7


# -- the bundle


def test_bundle_is_read_and_scores_alike(bundles):
    """In Python, by ONNX and by the pipeline that skops holds."""
    from fraudnb.train import fraud_probability, load_pipeline

    rows = pd.read_csv(ROWS)
    frozen = [row["probability"] for row in table((FROZEN / "scored_by_threshold.csv").read_text(encoding="utf-8"))]
    for folder in bundles.values():
        model = load_model(folder)
        assert np.abs(predict_probability(model, rows) - frozen).max() < 1e-6
        again = fraud_probability(load_pipeline(folder), rows[list(model.inputs)].to_numpy(np.float32))
        assert np.abs(again - frozen).max() < 1e-6
