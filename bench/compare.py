"""Measure `fraudnb diff` on two finished runs against the same intervals by a plain loop over scikit-learn.

    python bench/compare.py                    # 56,962 test rows, 2,000 resamples
    python bench/compare.py --repeats 5 --loop 50

`fraudnb diff` is timed as a command, from its start to the comment: reading, all metrics of both runs, 2,000 paired
resamples, and the Markdown. The loop draws rows with NumPy and calls scikit-learn's functions for the same metrics on
both runs, in a process that has everything imported; it does `--loop` resamples, and its time is scaled to 2,000.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from common import BIN, alternate, markdown, median_and_range, print_heading, scratch_folder, timed
from sklearn import metrics

from fraudnb.schema import Schema, write_table

RESAMPLES = 2000
THRESHOLD = 0.3


def make_scores(rows: int, noise: float) -> pd.DataFrame:
    """Scores of `rows` transactions, one in 760 a fraud, by a model whose logarithmic odds are right up to `noise`."""
    rng = np.random.default_rng(round(noise * 10))
    label = (np.arange(rows) % 760 == 0).astype(int)
    logit = 9 * label - 7 + noise * rng.normal(size=rows)
    amount = np.random.default_rng(0).exponential(80, rows)
    columns = {"row": range(rows), "label": label, "weight": 1.0, "amount": amount}
    return pd.DataFrame(columns | {"probability": 1 / (1 + np.exp(-logit))})


def write_run(folder: Path, scores: pd.DataFrame) -> None:
    """What `fraudnb diff` reads of a finished run."""
    folder.mkdir(parents=True)
    write_table(scores, folder / "scores.parquet", Schema(features=("V1",)), threshold=THRESHOLD)
    (folder / "metrics.json").write_text('{"test_days": 0.5}\n')


def run_diff(project: Path) -> float:
    """Seconds that the command takes."""
    return timed([str(BIN / "fraudnb"), "diff", "runs/a", "runs/b"], project, project / "log", os.environ)[0]


def sklearn_metrics(label: np.ndarray, probability: np.ndarray, amount: np.ndarray) -> list[float]:
    """The metrics that `fraudnb diff` compares, by scikit-learn."""
    alert = probability >= THRESHOLD
    values = [metrics.average_precision_score(label, probability), metrics.roc_auc_score(label, probability)]
    for score in (metrics.precision_score, metrics.recall_score, metrics.f1_score):
        values += [score(label, alert), score(label, alert, average="weighted")]
    values += [metrics.matthews_corrcoef(label, alert), metrics.accuracy_score(label, alert)]
    return [*values, metrics.brier_score_loss(label, probability), 5 * alert.sum() + amount @ (label * ~alert)]


def run_loop(pair: list[pd.DataFrame], resamples: int) -> float:
    """Seconds that the plain loop would take for all resamples."""
    rng, start, drawn = np.random.default_rng(0), time.perf_counter(), []
    tables = [[one[name].to_numpy() for name in ("label", "probability", "amount")] for one in pair]
    for _ in range(resamples):
        rows = rng.integers(0, len(pair[0]), len(pair[0]))
        base, head = (sklearn_metrics(*(column[rows] for column in table)) for table in tables)
        drawn.append(np.subtract(head, base))
    np.quantile(drawn, [0.025, 0.975], axis=0)
    return (time.perf_counter() - start) * RESAMPLES / resamples


def main() -> None:
    """Measure both sides in turns and print a table."""
    parser = argparse.ArgumentParser(description="fraudnb diff against a plain loop over scikit-learn.")
    parser.add_argument("--rows", type=int, default=56_962, help="test rows (default: 56,962)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--loop", type=int, default=20, help="resamples of the loop (default: 20)")
    options = parser.parse_args()
    print_heading()
    with scratch_folder(None, 50e6) as project:
        pair = [make_scores(options.rows, noise) for noise in (2.0, 1.8)]
        (project / "settings.ini").touch()
        for name, scores in zip("ab", pair, strict=True):
            write_run(project / "runs" / name, scores)
        sides = {
            "`fraudnb diff`": partial(run_diff, project),
            "plain loop, scaled": partial(run_loop, pair, options.loop),
        }
        results = alternate(sides, options.repeats)
    base = np.median(results["`fraudnb diff`"])
    rows = [[name, median_and_range(took), f"{np.median(took) / base:.1f}"] for name, took in results.items()]
    print(f"### {options.rows:,} test rows, {RESAMPLES:,} resamples, {options.repeats} rounds\n")
    print(markdown(["side", "s", "times"], rows))


if __name__ == "__main__":
    main()
