"""Measure how far the reasons that a bundle gives agree with SHAP values of the same model, on frauds.

    python bench/reasons.py --model models/main --data data/main/transactions.parquet
    python bench/reasons.py --model models/main --data data/main/transactions.parquet --frauds 200

Ours (`fraudnb.explain`): how much the log-odds change when one value is set to what is typical, asked of the ONNX graph
alone. The reference: `shap.TreeExplainer` on the fitted trees in model.skops, which shares the whole score out among
the values. The first ones of either list are what an investigator reads, so besides the rank correlation over all
inputs the table has how many of the five (and three) largest are the same, and how often the largest is. The model must
be lightgbm, extra_trees, random_forest or decision_tree; "by chance" is what a random order of the inputs would reach.
It needs `pip install shap`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import shap
from common import markdown, print_heading
from scipy.stats import spearmanr

from fraudnb.explain import log_odds, probability_changes
from fraudnb.model import Model, input_matrix, load_model
from fraudnb.train import load_pipeline


def our_moves(model: Model, matrix: np.ndarray) -> np.ndarray:
    """How far each value of `matrix` moves the log-odds of its row, without sign: (rows, inputs)."""
    probability, changes = probability_changes(model, matrix)
    return np.abs(log_odds(probability)[:, None] - log_odds(probability[:, None] - changes))


def shap_moves(folder: Path, matrix: np.ndarray) -> np.ndarray:
    """SHAP values of the trees in the bundle in `folder`, without sign: (rows, inputs)."""
    pipeline = load_pipeline(folder)
    values = shap.TreeExplainer(pipeline.named_steps["model"]).shap_values(pipeline[:-1].transform(matrix))
    values = values[1] if isinstance(values, list) else values
    return np.abs(values[..., 1] if values.ndim == 3 else values)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict[str, np.ndarray]:
    """Per row: Spearman rank correlation, shares of the five and three largest in common, whether the largest is."""
    ranks = [np.argsort(-one, axis=1, kind="stable") for one in (ours, theirs)]
    rows = range(len(ours))
    common = {
        f"of the {count} largest, in both": np.array(
            [len(np.intersect1d(ranks[0][row, :count], ranks[1][row, :count])) / count for row in rows]
        )
        for count in (5, 3)
    }
    correlation = np.array([spearmanr(ours[row], theirs[row]).statistic for row in rows])
    return (
        {"rank correlation": correlation}
        | common
        | {"the largest is the same": 1.0 * (ranks[0][:, 0] == ranks[1][:, 0])}
    )


def main() -> None:
    """Print the agreement on the frauds asked for."""
    parser = argparse.ArgumentParser(description="Agreement of a bundle's reasons with SHAP values.")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a bundle with model.skops")
    parser.add_argument("--data", type=Path, required=True, metavar="PATH.parquet", help="transactions with labels")
    parser.add_argument("--frauds", type=int, default=200, help="of the latest (default: 200)")
    options = parser.parse_args()
    print_heading()
    model = load_model(options.model)
    table = pd.read_parquet(options.data)
    matrix = input_matrix(table[table[model.card["schema"]["label"]] == 1].tail(options.frauds), model.inputs)
    start = time.perf_counter()
    ours = our_moves(model, matrix)
    middle = time.perf_counter()
    theirs = shap_moves(options.model, matrix)
    seconds = middle - start, time.perf_counter() - middle
    found, rng = agreement(ours, theirs), np.random.default_rng(0)
    chance = agreement(rng.random(ours.shape), theirs)
    rows = [
        [name, f"{values.mean():.2f}", f"{np.quantile(values, 0.1):.2f}", f"{chance[name].mean():.2f}"]
        for name, values in found.items()
    ]
    print(f"{len(matrix)} frauds, {model.card['parameters']['train']['model']}:\n")
    print(markdown(["agreement with SHAP", "mean", "lowest tenth", "by chance"], rows))
    print(f"\nours {seconds[0]:.2f} s, SHAP {seconds[1]:.2f} s for these rows")


if __name__ == "__main__":
    main()
