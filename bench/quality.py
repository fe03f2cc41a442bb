"""Measure how good the models are: the Handbook's table and the ULB data, each against its reference, as Markdown.

    python bench/quality.py --ulb ulb/transactions.parquet --handbook handbook/transactions.parquet
    python bench/quality.py --handbook handbook/transactions.parquet --seeds 5      # forests of five seeds
    python bench/quality.py --ulb ulb/transactions.parquet --keep build/quality     # runs that are there stay
    python bench/quality.py --prequential ulb/transactions.parquet --seeds 2        # folds, and what else was tried
    python bench/quality.py --attainable handbook/transactions.parquet              # what its columns allow at most

Everything runs through the notebooks: `fraudnb run` with recipes/handbook.yaml, recipes/ulb.yaml, recipes/article.yaml
and params.yaml in a scratch project. Seeds are fixed. On the ULB data, all models are measured on the same test rows,
the last fifth by time, as they were fitted before it; intervals are the middle 95 % of 1,000 resamples of these rows,
the same for all models. With --prequential, models are fitted and measured fold by fold in this process.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import BIN, make_project, markdown, print_heading, scratch_folder, timed

from fraudnb.metrics import average_precision, card_days, card_metrics, rank_rows
from fraudnb.preprocess import known_compromised
from fraudnb.quality import Contender, Rows, measure, resample_counts, side_by_side, with_interval

PUBLISHED = {
    "logistic regression": (0.871, 0.606, 0.291),
    "decision tree, depth 2": (0.763, 0.496, 0.241),
    "decision tree, unlimited": (0.788, 0.309, 0.243),
    "random forest": (0.867, 0.658, 0.287),
}
HANDBOOK = {
    "logistic regression": ["-p", "model", "logistic_regression"],
    "decision tree, depth 2": [
        "-p",
        "model",
        "decision_tree",
        "-p",
        "model_settings",
        "{max_depth: 2, min_samples_leaf: 1}",
    ],
    "decision tree, unlimited": ["-p", "model", "decision_tree"],
    "random forest": [],
    "our best": ["-f", "recipes/handbook_best.yaml"],
}
TABLE = ("roc_auc", "average_precision", "card_precision_at_100")
ZOO = ("logistic_regression", "decision_tree", "random_forest", "neural_network", "lightgbm", "extra_trees")
WINDOWS = {"test": 8 * 3600.0}
REVIEW_COST = 5.0


def run(project: Path, name: str, *words: str) -> float:
    """`fraudnb run` with `words` as the run `name` of `project`, unless it is there; wall seconds (NaN if it was)."""
    if (project / "runs" / name / "metrics.json").exists():
        return float("nan")
    command = [str(BIN / "fraudnb"), "run", *words, "--name", name]
    seconds, _ = timed(command, project, project / f"{name}.log", os.environ)
    print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return seconds


def metrics(project: Path, name: str) -> dict[str, float]:
    """The numbers of the run `name`."""
    return json.loads((project / "runs" / name / "metrics.json").read_text())


def handbook(project: Path, data: Path, seeds: int) -> str:
    """The Handbook's table, ours beside it; the forest as the mean of `seeds` seeds with their spread."""
    recipe, source = ["-f", "recipes/handbook.yaml"], ["-p", "source", str(data)]
    steps, rows = ["00", "02", "03", "04"], []
    # all five notebooks, as the recipe's user runs them
    seconds = run(project, "hb", *recipe, *source)
    for name, words in HANDBOOK.items():
        key = "hb_" + "".join(letter for letter in name if letter.isalnum()) if words else "hb"
        run(project, key, *steps, *source, *([] if "-f" in words else recipe), *words)
        found = [[metrics(project, key)[one] for one in TABLE]]
        if name == "random forest":
            for seed in range(2, seeds + 1):
                run(project, f"hb_{seed}", *steps, *source, *recipe, "-p", "seed", str(seed))
                found.append([metrics(project, f"hb_{seed}")[one] for one in TABLE])
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        ours = [
            f"{one:.3f}" + (f" ± {two:.3f}" if len(found) > 1 else "") for one, two in zip(mean, spread, strict=True)
        ]
        book = PUBLISHED.get(name)
        apart = f"{np.max(np.abs(mean - book)):.4f}" if book else ""
        rows.append([name, *([f"{one:.3f}" for one in book] if book else ["", "", ""]), *ours, apart])
    best = metrics(project, "hb_ourbest")
    bounds = ", ".join(f"{one} [{best[f'{one}_low']:.3f}, {best[f'{one}_high']:.3f}]" for one in TABLE)
    head = [
        "model",
        *(f"book: {one}" for one in ("ROC AUC", "AP", "CP@100")),
        "ROC AUC",
        "AP",
        "CP@100",
        "largest difference",
    ]
    line = f"`fraudnb run -f recipes/handbook.yaml`: {seconds:.0f} s. " if np.isfinite(seconds) else ""
    return f"### Handbook\n\n{markdown(head, rows)}\n\n{line}Our best, 95 % intervals: {bounds}.\n"


def attainable(data: Path, draws: int = 20) -> str:
    """Card precision@100 of the test week's own labels, and of those of frauds that the 15 columns can show.

    The simulation has three kinds of fraud: amounts above 220; all transactions at a compromised terminal, which its
    columns show once they know of a fraud there; amounts five times what the customer spends, here those above 2.5
    times the mean of the customer's others. Looks that are left over fall on cards at random.
    """
    table = pd.read_parquet(data).sort_values("TX_DATETIME", kind="stable")
    seconds = (table["TX_DATETIME"] - pd.Timestamp(0)).dt.total_seconds().to_numpy()
    label, card = table["TX_FRAUD"].to_numpy(), table["CUSTOMER_ID"].to_numpy()
    week = table["TX_DATETIME"].between("2018-08-08", "2018-08-15", inclusive="left").to_numpy()
    tested = week & ~known_compromised(card, seconds, label, 7 * 86_400.0)
    amount, kind = table["TX_AMOUNT"].to_numpy(), table["TX_FRAUD_SCENARIO"].to_numpy()
    count, mean = (table[f"CUSTOMER_ID_{one}_30DAY_WINDOW"].to_numpy() for one in ("NB_TX", "AVG_AMOUNT"))
    others = np.where(count > 1, (mean * count - amount) / np.maximum(count - 1, 1), mean)
    risk = table["TERMINAL_ID_RISK_30DAY_WINDOW"].to_numpy()
    shown = (kind == 1) | ((kind == 2) & (risk > 0)) | ((kind == 3) & ((amount > 220) | (amount > 2.5 * others)))
    rng, rows = np.random.default_rng(0), [column[tested] for column in (label, card, seconds)]

    def precision(known: np.ndarray) -> list[float]:
        drawn = (known[tested] + 1e-3 * rng.random(tested.sum()) for _ in range(draws))
        return [card_metrics(card_days(rows[0], one, *rows[1:]), 100)[0].mean() for one in drawn]

    lines = [
        [name, f"{known[tested & (label == 1)].mean():.0%}", f"{np.mean(found):.3f} ± {np.std(found):.3f}"]
        for name, known in (("every label", label == 1), ("frauds that the columns show", shown))
        for found in (precision(known),)
    ]
    return f"### What is attainable\n\n{markdown(['who knows', 'of the frauds', 'CP@100'], lines)}\n"


def contender(project: Path, name: str) -> tuple[pd.DataFrame, Contender]:
    """The test rows of the run `name` in order of their number, and its model with the threshold it chose."""
    scores = pd.read_parquet(project / "runs" / name / "scores.parquet").sort_values("row")
    return scores, Contender(scores["probability"].to_numpy(), metrics(project, name)["threshold"])


def ulb_runs(project: Path, data: Path) -> dict[str, str]:
    """Run every contender on the ULB data; their runs' names by what they are called in the table."""
    source = ["-p", "source", str(data)]
    run(project, "zoo_data", "00", "02", "03", "04", "-f", "params.yaml", *source, "-p", "model", "logistic_regression")
    article = ["00", "02", "03", "04", "-f", "recipes/article.yaml", *source]
    run(project, "article_lr", *article)
    run(project, "article_rf", *article, "-p", "model", "random_forest")
    names = {"article: logistic regression": "article_lr", "article: random forest": "article_rf"}
    for model in ZOO:
        shared = ["-p", "data_folder", "data/zoo_data", "-p", "model", model]
        run(project, f"zoo_{model}", "03", "04", "-f", "params.yaml", *shared)
        names[model.replace("_", " ")] = f"zoo_{model}"
    run(project, "ulb", "00", "02", "03", "04", "-f", "recipes/ulb.yaml", *source)
    return names | {"ours": "ulb"}


def ulb(project: Path, data: Path) -> str:
    """All contenders side by side on the last fifth of the ULB data, and what `Must hold` asks of ours."""
    found = {name: contender(project, one) for name, one in ulb_runs(project, data).items()}
    scores = found["ours"][0]
    for name, (other, _) in found.items():
        if not np.array_equal(other["row"], scores["row"]):
            sys.exit(f"{name} was tested on other rows than ours.")
    rows = Rows(*(scores[one].to_numpy() for one in ("label", "weight", "amount")))
    forest = found["article: random forest"][1]
    recall = float(rows.weight @ ((forest.probability >= forest.threshold) * rows.label) / (rows.weight @ rows.label))
    never = {"dummy: never an alert": Contender(np.zeros(len(scores)), 1.0)}
    contenders = never | {name: one for name, (_, one) in found.items()}
    days = metrics(project, "ulb")["test_days"]
    parts = [f"### ULB, last fifth: {len(scores):,} rows, {int(rows.label.sum())} frauds, {days:.2f} days\n"]
    for title, at in ((f"the article's forest's recall, {recall:.2f}", recall), ("80 % recall", 0.8)):
        measured = measure(rows, contenders, at, REVIEW_COST, days)
        table = side_by_side(measured)
        cells = [[name, *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
        times = measured["ours"]["precision_at_recall"] / measured["article: random forest"]["precision_at_recall"]
        parts.append(f"At {title}; saved against doing nothing, a look costing {REVIEW_COST:g}:\n")
        parts.append(markdown(["model", *table.columns], cells))
        parts.append(f"\nPrecision there, ours over the article's forest's: {with_interval(times, 1)} times.\n")
        ahead = measured["ours"]["saved"] - measured["article: random forest"]["saved"]
        parts.append(f"Saved, ours less the article's forest's: {with_interval(ahead, 0)}.\n")
    numbers = metrics(project, "ulb")
    for name in ("ece", "brier"):
        cells = [numbers[f"{name}_{one}"] for one in ("before", "after", "difference", "low", "high")]
        parts.append(
            "{}: uncalibrated {:.3g}, served {:.3g}, difference {:.2g} [{:.2g}, {:.2g}].\n".format(name, *cells)
        )
    size = (project / "models/ulb/model.onnx").stat().st_size / 1e6
    return "\n".join([*parts, f"The served model: {size:.1f} MB of ONNX, {one_row(project):.2f} ms a row (median).\n"])


def one_row(project: Path) -> float:
    """Median milliseconds in which the model of the run `ulb` scores one row."""
    from fraudnb.model import load_model, predict_matrix

    model = load_model(project / "models" / "ulb", threads=1)
    matrix, taken = np.zeros((1, len(model.inputs)), np.float32), []
    for _ in range(300):
        start = time.perf_counter()
        predict_matrix(model.session, matrix)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken) * 1000)


def tried(inputs: tuple[str, ...], schema: Any, recipe: Mapping[str, Any]) -> dict[str, Callable[[int], Any]]:
    """What prequential validation compares: from a seed to an unfitted pipeline, by name; the last is ours."""
    from fraudnb.train import make_blend, make_pipeline, set_model

    def one(name: str, **settings: Any) -> Callable[[int], Any]:
        return lambda seed: set_model(
            make_pipeline(name, inputs, schema, scaling="standard", jobs=2, seed=seed), settings
        )

    def ours(seed: int) -> Any:
        settings = recipe["model_settings"]
        blend = make_blend(recipe["members"], settings, inputs, schema, seeds=2, scaling="standard", jobs=2, seed=seed)
        return make_pipeline("blend", inputs, schema, model=blend)

    entropy = {"criterion": "entropy", "max_features": 15, "min_samples_leaf": 3}
    small = {"n_estimators": 400, "learning_rate": 0.03, "num_leaves": 7, "colsample_bytree": 0.3}
    return {
        "extra trees, defaults": one("extra_trees"),
        "extra trees, class weights": one("extra_trees", class_weight="balanced"),
        "extra trees, entropy, 15 features": one("extra_trees", **entropy),
        "random forest": one("random_forest", n_estimators=100),
        "lightgbm": one("lightgbm"),
        "lightgbm, slower and smaller": one("lightgbm", **small),
        "lightgbm, frauds count five times": one("lightgbm", class_weight={0: 1.0, 1: 5.0}),
        "logistic regression": one("logistic_regression", C=0.01),
        "neural network": one("neural_network"),
        "ours": ours,
    }


def prequential(project: Path, data: Path, seeds: int) -> str:
    """Average precision fold by fold on all ULB rows with labels; intervals from resamples within the folds, paired."""
    import yaml

    from fraudnb.prequential import PrequentialSplit
    from fraudnb.schema import Schema, model_inputs
    from fraudnb.train import as_arrays, fit_pipeline, fraud_probability

    table, schema = pd.read_parquet(data).drop_duplicates(ignore_index=True), Schema()
    inputs = model_inputs(schema)
    matrix, label, weight = as_arrays(table, inputs, schema)
    folds = list(PrequentialSplit(table[schema.time].to_numpy(), 0.0, 0.0, WINDOWS["test"], 4).split(matrix, label))
    recipe = yaml.safe_load((project / "recipes/ulb.yaml").read_text())["train"]
    drawn, lines = {}, []
    for name, make in tried(inputs, schema, recipe).items():
        by_seed = []
        for seed in range(seeds):
            for number, (train, test) in enumerate(folds):
                fitted, _ = fit_pipeline(make(seed), matrix[train], label[train], weight[train])
                ranking = rank_rows(label[test], fraud_probability(fitted, matrix[test]), weight[test], weight[test])
                order = np.argsort(-fraud_probability(fitted, matrix[test]), kind="stable")
                by_seed.append(resampled_precision(ranking, order, number))
        values = np.array(by_seed).reshape(seeds, len(folds), -1)
        drawn[name] = values.mean(axis=(0, 1))
        print(f"prequential: {name} done", file=sys.stderr, flush=True)
        lines.append(
            [
                name,
                with_interval(drawn[name]),
                f"{values[:, :, 0].mean(axis=1).std():.3f}",
                *(f"{one:.3f}" for one in values[:, :, 0].mean(axis=0)),
            ]
        )
    for line, values in zip(lines, drawn.values(), strict=True):
        line.append("" if values is drawn["ours"] else with_interval(drawn["ours"] - values))
    head = ["model", "mean", "sd over seeds", *(f"fold {one}" for one in range(1, len(folds) + 1)), "ours ahead by"]
    return f"### ULB, prequential: four tests of eight hours, all the past, {seeds} seeds\n\n{markdown(head, lines)}\n"


def resampled_precision(ranking: Any, order: np.ndarray, fold: int, resamples: int = 200) -> list[float]:
    """Average precision of a fold's rows as they are and on resamples of them, which depend on `fold` alone."""
    values = []
    for counts in (np.ones(len(order)), *resample_counts(len(order), resamples, seed=fold)):
        mass = counts[order] * ranking.weight
        values.append(float(average_precision(ranking, np.cumsum(mass), np.cumsum(mass * ranking.label))))
    return values


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="How good the models are, each against its reference.")
    parser.add_argument("--ulb", type=Path, metavar="PATH.parquet", help="the ULB transactions with labels")
    parser.add_argument("--handbook", type=Path, metavar="PATH.parquet", help="the Handbook's transformed transactions")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of forests and of prequential models (default: 1)")
    parser.add_argument(
        "--prequential", type=Path, metavar="PATH.parquet", help="the same, compared by prequential folds"
    )
    parser.add_argument(
        "--attainable", type=Path, metavar="PATH.parquet", help="what the Handbook's columns allow at most"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="work here, leave it, and keep the runs that are there"
    )
    return parser.parse_args()


def main() -> None:
    """Print a section per data set asked for."""
    options = parse_arguments()
    if not (options.ulb or options.handbook or options.prequential or options.attainable):
        sys.exit("Name the data with --ulb, --handbook, --prequential or --attainable.")
    print_heading()
    if options.attainable:
        print(attainable(options.attainable.resolve(strict=True)), flush=True)
    with scratch_folder(options.keep, 2e8) as folder:
        project = make_project(folder)
        if options.handbook:
            print(handbook(project, options.handbook.resolve(strict=True), options.seeds), flush=True)
        if options.ulb:
            print(ulb(project, options.ulb.resolve(strict=True)), flush=True)
        if options.prequential:
            print(prequential(project, options.prequential.resolve(strict=True), options.seeds), flush=True)


if __name__ == "__main__":
    main()
